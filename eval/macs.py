"""Multiply-accumulates of a U-Net's full and retrieve steps, counted without weights on the meta device.

python -m eval.macs --model sd15 --branches 1 --intervals 2,3,5,10
python -m eval.macs --model ddpm-cifar10 --steps 100 --plot figure4.png --out macs.json
python -m eval.macs --model assets/shapes-sd                      any pipeline, U-Net directory, config.json or hub id

The paper's "skip branch" is m + 1 here.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from common import numbers
from common.command_line import Parser, add_quiet_argument, run_cli
from common.files import check_can_be_written, write_json
from common.words import counted

from .counting.branches import CONVENTIONS, measure, plot
from .counting.layouts import open_model
from .counting.macs import unet_inputs


def report(result: dict[str, Any]) -> str:
    """The measurements as two tables to read, in G."""
    lines = []
    for convention, title in CONVENTIONS.items():
        full = result["full"][convention]
        intervals = list(result["branches"][0]["average"])
        lines += [
            f"{title}: full step {full / 1e9:.4f} G",
            f"{'m':>4}{'d_m + u_m':>12}{'retrieve':>12}{'÷ full':>9}"
            + "".join(f"{'N=' + n:>12}" for n in intervals)
            + f"   averages over {counted(result['steps'], 'step')}",
        ]
        for row in result["branches"]:
            retrieve = row["retrieve"][convention]
            cells = [row["average"][n][convention] for n in intervals]
            lines.append(
                f"{row['cache_branch_id']:>4}{row['layers'][convention] / 1e9:>12.4f}{retrieve / 1e9:>12.4f}"
                f"{retrieve / full:>9.4f}" + "".join(f"{cell / 1e9:>12.4f}" for cell in cells)
            )
        lines.append("")
    return "\n".join(lines).rstrip()


def parser() -> Parser:
    p = Parser(prog="python -m eval.macs", description=__doc__)
    p.add_argument(
        "--model", default="sd15",
        help="sd15, sd21, sdxl, svd, svd-xt, ldm4, ddpm-cifar10, ddpm-lsun, bk-sdm-base, bk-sdm-small, bk-sdm-tiny; "
        "or a hub id, a pipeline's or a U-Net's directory, a U-Net's config.json",
    )  # fmt: skip
    p.add_argument("--branches", type=_branches, metavar="m,…", help="skip branches from 0 (default: all)")
    p.add_argument(
        "--intervals", type=numbers.intervals, default=[2, 3, 5, 10], metavar="N,…", help="every N-th step full"
    )
    p.add_argument("--steps", type=numbers.steps, default=50, help="denoising steps to average over")
    p.add_argument("--height", type=numbers.whole(1, numbers.MOST_PIXELS), help="of the latents (default: the model's)")
    p.add_argument("--width", type=numbers.whole(1, numbers.MOST_PIXELS), help="of the latents (default: the model's)")
    p.add_argument("--tokens", type=numbers.whole(1, 100_000), help="of the text (default: the model's, else 77)")
    p.add_argument("--frames", type=numbers.whole(1, 10_000), help="of a video (default: the model's)")
    p.add_argument("--plot", type=Path, metavar="FILE", help="draw Figure 4, MACs by skip branch")
    p.add_argument("--out", type=Path, metavar="FILE", help="write everything to this JSON file")
    add_quiet_argument(p)
    return p


def run(args: argparse.Namespace) -> None:
    check_can_be_written(args.out, args.plot)
    model = open_model(args.model)
    size = (args.height or model.size[0], args.width or model.size[1])
    fork = model.on_meta()
    branches = range(fork.num_skip_branches) if args.branches is None else args.branches
    inputs = unet_inputs(fork, *size, tokens=args.tokens or model.tokens, frames=args.frames or model.frames)
    result = {"model": args.model, "height": size[0], "width": size[1]}
    result |= measure(fork, inputs, branches, args.intervals, args.steps, model.exceptions, args.quiet)
    print(f"{args.model}, {result['parameters']:,} parameters, {size[0]} × {size[1]}, batch 1; G multiply-accumulates")
    print(report(result))
    if args.plot:
        plot(result, args.model, args.plot)
    if args.out:
        write_json(args.out, result)


def _branches(text: str) -> list[int] | None:
    return None if text == "all" else numbers.branches(text)


def main(argv: list[str] | None = None) -> int:
    return run_cli(lambda: run(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
