"""Times the U-Net with and without DeepCache, in turn, for the shipped models in the layouts of DDPM and LDM-4-G.

python -m benchmarks.samplers
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from types import SimpleNamespace
from typing import Any

from common import numbers
from common.command_line import Parser, run_cli
from common.device import resolve_device
from common.shipped import SHAPES_DDPM, SHAPES_LDM
from common.timing import alternate, pairwise, time_call
from ddpm.checkpoint import load_unet
from ddpm.sample import sample
from ddpm.sampler import timesteps_of
from image_sets.batches import Batch
from ldm.checkpoint import load_pipeline


def parser() -> Parser:
    p = Parser(prog="python -m benchmarks.samplers", description=__doc__)
    p.add_argument("--batch-size", type=numbers.batch, default=8)
    p.add_argument("--steps", type=numbers.steps, default=50)
    p.add_argument("--intervals", type=numbers.interval, nargs="+", default=[2, 3, 5, 10])
    p.add_argument("--repeats", type=numbers.repeats, default=3)
    p.add_argument("--device", default="cpu")
    return p


def run(args: argparse.Namespace) -> None:
    device = resolve_device(args.device)
    unet, pipe = load_unet(SHAPES_DDPM).eval().to(device), load_pipeline(SHAPES_LDM).to(device)
    pipe.set_progress_bar_config(disable=True)
    indices = range(args.batch_size)
    timesteps = timesteps_of(args.steps, "uniform")

    def ddpm(**cache: Any) -> Any:
        return sample(unet, Batch.of(0, indices), timesteps, device=device, **cache)

    def ldm(**cache: Any) -> Any:
        return pipe(
            [k % pipe.num_classes for k in indices],
            args.steps,
            generator=Batch.of(0, indices).generators,
            output_type="pt",
            **cache,
        )

    for name, sampler, model, branch in (("DDPM", ddpm, unet, 2), ("LDM", ldm, pipe.unet, 0)):

        def seconds(sampler: Any, unet: Any, branch: int, interval: int) -> float:
            call = partial(sampler, cache_interval=interval, cache_branch_id=branch)
            return time_call([SimpleNamespace(unet=unet)], call, device)[2][0].unet

        calls = [partial(seconds, sampler, model, branch, interval) for interval in (1, *args.intervals)]
        alternate(calls, 1)
        baseline, *others = alternate(calls, args.repeats)
        for interval, cached in zip(args.intervals, others, strict=True):
            ratio = pairwise(baseline, cached)
            print(f"{name}, m = {branch}, N = {interval:2}: U-Net {ratio['median']:.2f}× "
                  f"({ratio['min']:.2f}–{ratio['max']:.2f})", flush=True)  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    return run_cli(lambda: run(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
