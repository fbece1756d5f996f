"""Several ways to cache on the same pictures: MACs, and PSNR to the baseline with its 95 % interval.

python -m dit.compare router.json schedule.json --steps 20 --num-images 256
python -m dit.compare --intervals 2,3,4 --outer-blocks 0,1,2 --steps 20

Files are those of dit.train_router and dit.search. Of the files, each is also compared with the first, picture by
picture: the mean difference of PSNR, with the interval of a paired t-test.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pareto import median_interval
from common import numbers
from common.command_line import Parser, run_cli
from common.environment import versions
from common.files import check_can_be_written, write_json
from eval.metrics.distances import psnr
from eval.metrics.paired import paired_difference

from .config import LayerCacheConfig, shares
from .macs import layer_macs
from .options import add_model_arguments, open_maker
from .schedules import read_schedule


def parser() -> Parser:
    p = Parser(prog="python -m dit.compare", description=__doc__)
    p.add_argument("files", nargs="*", type=Path, metavar="FILE", help="schedules")
    add_model_arguments(p, steps=20, num_images=64)
    p.add_argument("--intervals", type=numbers.intervals, metavar="N,…", help="uniform schedules too")
    p.add_argument("--outer-blocks", type=numbers.branches, default=[1], metavar="m,…", help="of these")
    p.add_argument("--forecast", type=reals, default=[0.0], metavar="g,…", help="of these")
    p.add_argument("--out", type=Path, metavar="FILE", help="write what was measured to this JSON file")
    return p


def reals(text: str) -> list[float]:
    """Forecasts, separated by commas."""
    return [numbers.forecast(part) for part in text.split(",")]


def ways(args: argparse.Namespace) -> dict[str, LayerCacheConfig]:
    """What is to be compared, by name. Raises ValueError if there is nothing."""
    found = {str(path): read_schedule(path) for path in args.files}
    for n in args.intervals or ():
        for m in args.outer_blocks:
            for g in args.forecast:
                cache = LayerCacheConfig(cache_interval=n, outer_blocks=m, forecast=g)
                found[cache.name()] = cache
    if not found:
        raise ValueError("there is nothing to compare; give files of schedules, or --intervals")
    return found


def run(args: argparse.Namespace) -> None:
    caches = ways(args)
    check_can_be_written(args.out)
    maker = open_maker(args)
    macs, num_steps = layer_macs(maker.pipe.transformer.config), maker.num_calls
    tables = {name: cache.table(num_steps, maker.depth) for name, cache in caches.items()}
    baseline = maker.make(range(args.num_images))
    print(f"{'':32} {'MACs':>7} {'attention':>10} {'MLPs':>6}   PSNR, median (95 %)   to the first, mean (95 %)")
    rows: list[dict[str, Any]] = []
    first: np.ndarray | None = None
    for name, cache in caches.items():
        each = psnr(maker.make(range(args.num_images), cache), baseline)
        first = each if first is None else first
        low, high = median_interval(each)
        attention, mlp = shares(tables[name])
        row: dict[str, Any] = {
            "name": name,
            "cache": cache.to_json(),
            "speed_up_in_macs": macs.speed_up(tables[name]),
            "attention": attention,
            "mlp": mlp,
            "psnr": float(np.median(each)),
            "psnr_interval": [low, high],
        }
        text = f"{name:32} {row['speed_up_in_macs']:6.2f}x {attention:10.0%} {mlp:6.0%}"
        text += f"   {row['psnr']:6.2f} dB ({low:.2f} to {high:.2f})"
        if first is not each and len(each) > 1:
            pair = paired_difference(each.tolist(), first.tolist())
            row["to_the_first"] = pair._asdict()
            text += f"   {pair.difference:+.2f} ({pair.low:+.2f} to {pair.high:+.2f})"
        print(text, flush=True)
        rows.append(row)
    if args.out is not None:
        made_from = {**maker.made_from, "num_images": args.num_images}
        write_json(args.out, {"made_from": made_from, "rows": rows, "versions": versions(maker.pipe.device)})


def main(argv: list[str] | None = None) -> int:
    return run_cli(lambda: run(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
