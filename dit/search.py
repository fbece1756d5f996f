"""Finds which layers to compute at which steps, without training: measured on a few images, and tried on others.

python -m dit.search --steps 20 --budget 1.5x --out schedule.json      the shipped model
python -m dit.search --steps 20 --budget 2x --forecast 1 --out schedule.json
python -m dit.sample --steps 20 --schedule schedule.json               what was found, beside the baseline

The schedule with the least sum of measured errors is found exactly (dit/best_layers.py); the sum itself is a model, in
which layers and steps do not act on each other. So what was found is tried on as many other images, and so is the best
of the schedules that compute every N-th step and the m outer blocks, within the same budget.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from common import numbers
from common.command_line import Parser, run_cli
from common.files import check_can_be_written
from eval.metrics.distances import psnr

from .best_layers import best_table, curve, total_error
from .config import LayerCacheConfig, shares
from .macs import LayerMacs, layer_macs
from .measure import measure
from .options import add_model_arguments, open_maker
from .schedules import draw_schedule, write_schedule


def parser() -> Parser:
    p = Parser(prog="python -m dit.search", description=__doc__)
    add_model_arguments(p, steps=20, num_images=8)
    p.add_argument("--budget", type=times, default="1.5x", metavar="2x", help="how many times fewer MACs")
    p.add_argument(
        "--forecast", type=numbers.forecast, default=0.0, metavar="g",
        help="for outputs that are extrapolated from the last two: 1 is the line through them",
    )  # fmt: skip
    p.add_argument("--out", type=Path, metavar="FILE", default=Path("schedule.json"), help="a picture goes beside it")
    return p


def times(text: str) -> float:
    """A speed-up such as 2x."""
    budget = numbers.real(1, 1000)(text.removesuffix("x"))
    if budget == 1:
        raise argparse.ArgumentTypeError("is 1x, which a run without a cache has; give more, such as 1.5x")
    return budget


def uniform_descriptions(num_steps: int, macs: LayerMacs, budget: float, forecast: float) -> list[LayerCacheConfig]:
    """All of every N-th step and m outer blocks that have the speed-up."""
    found = [
        LayerCacheConfig(cache_interval=n, outer_blocks=m, forecast=forecast)
        for n in range(2, num_steps + 1)
        for m in range((macs.depth - 1) // 2 + 1)
    ]
    return [one for one in found if macs.speed_up_of(one, num_steps) >= budget]


def run(args: argparse.Namespace) -> None:
    picture = args.out.with_suffix(".png")
    check_can_be_written(args.out, picture)
    maker = open_maker(args)
    num_steps, macs = maker.num_calls, layer_macs(maker.pipe.transformer.config)
    measured = measure(maker, range(args.num_images), quiet=args.quiet)
    errors = measured.errors(args.forecast)
    table, predicted = best_table([curve(one) for one in errors], macs, args.budget)
    found = {"found": LayerCacheConfig.of_table(table, forecast=args.forecast)}
    others = uniform_descriptions(num_steps, macs, args.budget, args.forecast)
    if others:
        best = min(others, key=lambda one: total_error(errors, one.table(num_steps, maker.depth)))
        found[f"uniform, {best.name()}"] = best

    held_out = range(args.num_images, 2 * args.num_images)
    baseline = maker.make(held_out)
    print(f"{'schedule':24} {'MACs':>7} {'attention':>10} {'MLPs':>6} {'predicted':>10} {'PSNR, median':>13}")
    trials = []
    for name, cache in found.items():
        of = cache.table(num_steps, maker.depth)
        trial = {
            "name": name,
            "speed_up": macs.speed_up(of),
            "predicted": total_error(errors, of),
            "psnr": statistics.median(psnr(maker.make(held_out, cache), baseline).tolist()),
        }
        attention, mlp = shares(of)
        print(
            f"{name:24} {trial['speed_up']:6.2f}x {attention:10.0%} {mlp:6.0%} {trial['predicted']:10.3g} "
            f"{trial['psnr']:10.1f} dB"
        )
        trials.append(trial)
    made_from = {**maker.made_from, "budget": args.budget, "num_images": args.num_images}
    write_schedule(args.out, found["found"], made_from, predicted=predicted, trials=trials)
    draw_schedule(picture, table, f"searched, {macs.speed_up(table):.2f} times fewer MACs")
    print(f"Written  {args.out}, {picture}; python -m dit.sample --steps {args.steps} --schedule {args.out}")


def main(argv: list[str] | None = None) -> int:
    return run_cli(lambda: run(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
