"""Draws new pictures with the renderer, as the reference for the shipped models' pictures.

python -m shapes.draw --model ldm4 --count 2000 --out drawn.npz
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from common import numbers
from common.command_line import Parser, run_cli
from common.files import atomic_write

from .train_ddpm import small_pictures
from .train_sd import batch_of_pictures

SEED = 7  # not used in training, whose seeds begin with 0, 1 and 10 to 12


def pictures_like(model: str, size: int, *seed: int) -> Tensor:
    """`size` pictures (B, 3, H, W) in [-1, 1] like the training pictures of the shipped stand-in for `model`."""
    if model == "ddpm-cifar10":
        return small_pictures(size, *seed)
    return batch_of_pictures(size, *seed, things=1 if model == "ldm4" else None)[0]


def draw(model: str, count: int, out: Path, quiet: bool = False) -> None:
    """Writes `count` pictures to an .npz, `arr_0` uint8 (B, H, W, 3)."""
    parts = []
    for start in tqdm(range(0, count, 100), desc=out.name, disable=quiet or None, delay=5):
        pictures = pictures_like(model, min(100, count - start), SEED, start)
        parts.append(((pictures + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
    with atomic_write(out) as tmp_path:
        np.savez(tmp_path, arr_0=np.concatenate(parts))


def parser() -> Parser:
    p = Parser(prog="python -m shapes.draw", description=__doc__)
    p.add_argument("--model", choices=["ldm4", "ddpm-cifar10", "sd15"], default="ldm4")
    p.add_argument("--count", type=numbers.images, default=2000)
    p.add_argument("--out", type=Path, default=Path("outputs/drawn.npz"))
    return p


def run(args: argparse.Namespace) -> None:
    draw(args.model, args.count, args.out)


def main(argv: list[str] | None = None) -> int:
    return run_cli(lambda: run(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
