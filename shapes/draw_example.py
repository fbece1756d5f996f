"""Draws `assets/example.png`, the default input image of the video scripts.

python -m shapes.draw_example
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

from common.command_line import Parser, run_cli
from common.files import atomic_write
from common.shipped import EXAMPLE_IMAGE

WIDTH, HEIGHT = 1024, 576  # pixels, what Stable Video Diffusion was trained on
SCALE = 2  # drawn larger and scaled down, for smooth edges


def draw() -> Image.Image:
    """A sailing boat on a lake between hills, in the evening."""
    w, h = WIDTH * SCALE, HEIGHT * SCALE
    image = Image.new("RGB", (w, h))
    pen = ImageDraw.Draw(image)
    shore = round(0.58 * h)
    for y in range(shore):  # sky
        t = y / shore
        pen.line([(0, y), (w, y)], fill=(round(70 + 180 * t), round(95 + 95 * t), round(160 - 30 * t)))
    sun = (0.7 * w, 0.4 * h, 0.06 * h)
    pen.ellipse([sun[0] - sun[2], sun[1] - sun[2], sun[0] + sun[2], sun[1] + sun[2]], fill=(255, 236, 180))
    for depth, colour in enumerate(((110, 95, 120), (80, 75, 95), (50, 60, 65))):  # hills, far to near
        ridge = [
            (x, shore - h * (0.2 - 0.055 * depth) * (1.1 + math.sin(x / w * (5 + 3 * depth) + 2 * depth)) / 2)
            for x in range(0, w + 1, 8)
        ]
        pen.polygon([(0, shore), *ridge, (w, shore)], fill=colour)
    for y in range(shore, h):  # water, with the sun on it
        t = (y - shore) / (h - shore)
        pen.line([(0, y), (w, y)], fill=(round(150 - 110 * t), round(125 - 70 * t), round(125 - 40 * t)))
        if y % 12 < 6:
            half = (0.03 + 0.06 * t) * h * (1 + 0.4 * math.sin(y))
            pen.line([(sun[0] - half, y), (sun[0] + half, y)], fill=(235, 190, 140))
    x, waterline, size = 0.33 * w, 0.74 * h, 0.11 * h  # boat
    hull = [(-1.0, 0.0), (1.0, 0.0), (0.7, 0.35), (-0.75, 0.35)]
    pen.polygon([(x + size * dx, waterline + size * dy) for dx, dy in hull], fill=(90, 40, 35))
    pen.line([(x, waterline), (x, waterline - 2.2 * size)], fill=(60, 45, 40), width=round(0.06 * size))
    for side, top, foot, colour in ((1, 2.1, 0.9, (245, 240, 230)), (-1, 1.7, 0.7, (215, 70, 55))):  # sails
        mast = x + 0.06 * side * size
        pen.polygon(
            [
                (mast, waterline - 0.1 * size),
                (mast, waterline - top * size),
                (x + foot * side * size, waterline - 0.1 * size),
            ],
            fill=colour,
        )
    return image.filter(ImageFilter.GaussianBlur(SCALE)).resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def parser() -> Parser:
    p = Parser(prog="python -m shapes.draw_example", description=__doc__)
    p.add_argument("--out", type=Path, default=EXAMPLE_IMAGE, metavar="FILE", help="the PNG to write")
    return p


def run(args: argparse.Namespace) -> None:
    image = draw().quantize(128).convert("RGB")
    with atomic_write(args.out) as tmp_path:
        image.save(tmp_path, "png", optimize=True)


def main(argv: list[str] | None = None) -> int:
    return run_cli(lambda: run(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
