"""Several ways to cache, and fewer steps, on the same pictures: MACs, seconds, and PSNR to the baseline.

python -m dit.compare schedule.json router.json --steps 20 --num-images 256
python -m dit.compare --intervals 2,3,4 --outer-blocks 0,1,2 --fewer-steps 7,10 --steps 20

Files are those of dit.train_router and dit.search. Of each batch all ways are run in turn, so that what slows the
machine down slows all of them. Each way is also compared with the first, picture by picture: the mean difference of
PSNR, with the interval of a paired t-test. A star marks what no other way beats in both MACs and PSNR.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.pareto import median_interval
from common import numbers
from common.command_line import Parser, run_cli
from common.environment import versions
from common.files import check_can_be_written, write_json
from common.timing import Clock, alternate, pairwise
from common.words import counted
from eval.metrics.distances import psnr
from eval.metrics.paired import paired_difference
from pipelines.loading import check_steps

from .config import LayerCacheConfig, shares
from .macs import layer_macs
from .options import Maker, add_model_arguments, open_maker
from .pipeline import OFF
from .schedules import read_schedule

BASELINE = "baseline"


def parser() -> Parser:
    p = Parser(prog="python -m dit.compare", description=__doc__)
    p.add_argument("files", nargs="*", type=Path, metavar="FILE", help="schedules")
    add_model_arguments(p, steps=20, num_images=64)
    p.add_argument("--intervals", type=numbers.intervals, metavar="N,…", help="uniform schedules too")
    p.add_argument("--outer-blocks", type=numbers.branches, default=[1], metavar="m,…", help="of these")
    p.add_argument("--forecast", type=reals, default=[0.0], metavar="g,…", help="of these")
    p.add_argument(
        "--fewer-steps", type=numbers.wholes(1), default=[], metavar="K,…", help="and the sampler with K steps"
    )
    p.add_argument("--out", type=Path, metavar="FILE", help="write what was measured to this JSON file")
    return p


def reals(text: str) -> list[float]:
    """Forecasts, separated by commas."""
    return [numbers.forecast(part) for part in text.split(",")]


def caches_of(args: argparse.Namespace) -> dict[str, LayerCacheConfig]:
    """The caches that are to be compared, by name. Raises ValueError if there is nothing to compare."""
    found = {str(path): read_schedule(path) for path in args.files}
    for n in args.intervals or ():
        for m in args.outer_blocks:
            for g in args.forecast:
                cache = LayerCacheConfig(cache_interval=n, outer_blocks=m, forecast=g)
                found[cache.name()] = cache
    if not found and not args.fewer_steps:
        raise ValueError("there is nothing to compare; give files of schedules, --intervals or --fewer-steps")
    return found


def make_in_turn(
    ways: dict[str, tuple[Maker, LayerCacheConfig]], num_images: int, *, quiet: bool
) -> tuple[dict[str, np.ndarray], dict[str, list[float]]]:
    """Pictures of each way, uint8 (N, H, W, 3), and its seconds, batch by batch."""
    images: dict[str, list[np.ndarray]] = {name: [] for name in ways}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    maker, _ = next(iter(ways.values()))
    clock = Clock(maker.pipe.device)

    def timed(maker: Maker, cache: LayerCacheConfig, batch: Sequence[int]) -> tuple[np.ndarray, float]:
        start = clock.mark()
        made = maker.make_batch(batch, cache)
        end = clock.mark()
        clock.synchronise()
        return made, clock.seconds(start, end)

    batches = list(maker.batches(range(num_images)))
    maker.make_batch(batches[0])  # a warm-up
    for batch in tqdm(batches, desc="compare", disable=quiet or None):
        made = alternate([partial(timed, maker, cache, batch) for maker, cache in ways.values()], 1)
        for name, [(pictures, one)] in zip(ways, made, strict=True):
            images[name].append(pictures)
            seconds[name].append(one)
    return {name: np.concatenate(parts) for name, parts in images.items()}, seconds


def mark_frontier(rows: list[dict[str, Any]]) -> None:
    """Sets `frontier` of each row: no other is at least as good in MACs and in PSNR, and better in one."""
    for row in rows:
        mine = row["speed_up_in_macs"], row["psnr"]
        others = [(other["speed_up_in_macs"], other["psnr"]) for other in rows]
        row["frontier"] = not any(other != mine and other[0] >= mine[0] and other[1] >= mine[1] for other in others)


def run(args: argparse.Namespace) -> None:
    caches = caches_of(args)
    check_can_be_written(args.out)
    maker = open_maker(args)
    macs, num_steps = layer_macs(maker.pipe.transformer.config), maker.num_calls
    tables = {name: cache.table(num_steps, maker.depth) for name, cache in caches.items()}
    fewer = {counted(k, "step"): replace(maker, steps=k) for k in args.fewer_steps}
    for other in fewer.values():
        check_steps(maker.pipe, other.steps)
    speed_ups = {name: macs.speed_up(table) for name, table in tables.items()}
    speed_ups |= {name: num_steps / other.num_calls for name, other in fewer.items()}
    images, seconds = make_in_turn(
        {BASELINE: (maker, OFF), **{name: (maker, cache) for name, cache in caches.items()},
         **{name: (other, OFF) for name, other in fewer.items()}},
        args.num_images, quiet=args.quiet,
    )  # fmt: skip
    each = {name: psnr(made, images[BASELINE]) for name, made in images.items() if name != BASELINE}
    first = next(iter(each.values()))
    rows: list[dict[str, Any]] = []
    for name, values in each.items():
        row: dict[str, Any] = {
            "name": name,
            "cache": caches.get(name, OFF).to_json(),
            "speed_up_in_macs": speed_ups[name],
            "speed_up": pairwise(seconds[BASELINE], seconds[name]),
            "psnr": float(np.median(values)),
            "psnr_interval": median_interval(values),
        }
        if name in tables:
            row["attention"], row["mlp"] = shares(tables[name])
        if values is not first and len(values) > 1:
            row["to_the_first"] = paired_difference(values.tolist(), first.tolist())._asdict()
        rows.append(row)
    mark_frontier(rows)
    print(report(rows))
    if args.out is not None:
        made_from = {**maker.made_from, "num_images": args.num_images}
        record = {
            "made_from": made_from,
            "rows": rows,
            "seconds_of_a_batch": {name: float(np.median(values)) for name, values in seconds.items()},
            "versions": versions(maker.pipe.device),
        }
        write_json(args.out, record)


def report(rows: list[dict[str, Any]]) -> str:
    """What was measured, for a terminal."""
    lines = [
        f"  {'':32} {'MACs':>6} {'time':>7}  {'attention':>9} {'MLPs':>5}   PSNR, median (95 %)        "
        "to the first, mean (95 %)"
    ]
    for row in rows:
        low, high = row["psnr_interval"]
        computed = f"{row['attention']:9.0%} {row['mlp']:5.0%}" if "mlp" in row else f"{'all':>9} {'all':>5}"
        line = f"{'*' if row['frontier'] else ' '} {row['name']:32} {row['speed_up_in_macs']:5.2f}×"
        line += f" {row['speed_up']['median']:6.2f}×  {computed}   {row['psnr']:6.2f} dB ({low:.2f} to {high:.2f})"
        if "to_the_first" in row:
            pair = row["to_the_first"]
            line += f"   {pair['difference']:+.2f} ({pair['low']:+.2f} to {pair['high']:+.2f})"
        lines.append(line)
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    return run_cli(lambda: run(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
