"""CLIP Score of images and the prompts they were made from.

python -m eval.clip_score images.npz --prompts prompts.txt                          ViT-g-14, as in the paper
python -m eval.clip_score coco2017_ckpt/images-original-50-time-900.pt              prompts are in the file
python -m eval.clip_score pictures/ --prompts prompts.txt --model shapes            pictures of the shipped model

100 times the cosine of image and text embedding, 0 where it is negative; then the mean over the images.
Behind ± is half of a 95 % interval: 1.96 standard errors.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

from common import numbers
from common.command_line import Parser, add_quiet_argument, run_cli
from common.device import resolve_device
from common.environment import versions
from common.files import atomic_write, check_can_be_written, write_json
from common.words import counted

from .metrics.clip_score import MODEL, PRETRAINED, compute, prompts_for
from .metrics.intervals import Z95
from .metrics.version import code_version


def parser() -> Parser:
    p = Parser(prog="python -m eval.clip_score", description=__doc__)
    p.add_argument(
        "images",
        type=Path,
        metavar="IMAGES",
        help="folder (in the order of the numbers in the names: 2.png before 10.png), .npz or .pt",
    )
    p.add_argument("--prompts", type=Path, metavar="FILE", help="one per line, or a JSON list (default: a .pt's own)")
    p.add_argument("--model", default=MODEL, help="an open_clip model, a folder in its format, or shapes")
    p.add_argument("--pretrained", default=PRETRAINED, metavar="NAME_OR_FILE", help="weights of an open_clip model")
    p.add_argument("--batch-size", type=numbers.batch, default=16)
    p.add_argument("--device", help="cuda, mps or cpu (default: first available)")
    p.add_argument("--csv", type=Path, metavar="FILE", help="write prompt and score of each image to this file")
    p.add_argument("--out", type=Path, metavar="FILE", help="write the result to this JSON file")
    add_quiet_argument(p)
    return p


def run(args: argparse.Namespace) -> None:
    device = resolve_device(args.device)
    check_can_be_written(args.out, args.csv)
    prompts = prompts_for(args.images, args.prompts)
    result = compute(
        args.images, prompts, model=args.model, pretrained=args.pretrained, device=device,
        batch_size=args.batch_size, quiet=args.quiet,
    )  # fmt: skip
    error = result["standard_error"]
    print(f"CLIP Score {result['mean']:.3f}" + ("" if error is None else f" ± {Z95 * error:.3f} (95 %)"))
    print(f"{counted(result['num_images'], 'image')}, {args.model}")
    if args.csv:
        with atomic_write(args.csv) as tmp_path, tmp_path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "prompt", "clip_score"])
            writer.writerows(zip(range(len(prompts)), prompts, result["per_image"], strict=True))
    if args.out:
        made_with = {"code": code_version(), "versions": versions(device)}
        write_json(args.out, {"images": str(args.images), **made_with, **result})


def main(argv: list[str] | None = None) -> int:
    return run_cli(lambda: run(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
