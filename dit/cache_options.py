"""The options of a layer cache on a command line, and the description that they ask for."""

from __future__ import annotations

import argparse
from pathlib import Path

from common import numbers

from .config import REUSED, LayerCacheConfig
from .schedules import read_schedule


def add_cache_arguments(parser: argparse.ArgumentParser) -> None:
    """Interval, blocks and kinds of layers, or a file; forecast."""
    p = parser.add_argument_group("cache")
    p.add_argument("--cache-interval", type=numbers.interval, metavar="N", help="every N-th step is full (default: 2)")
    p.add_argument(
        "--outer-blocks", type=numbers.branch, metavar="m",
        help="cheap steps compute the first m and the last m blocks too (default: 1)",
    )  # fmt: skip
    p.add_argument("--reuse", choices=list(REUSED), help="which layers of the others are reused (default: both)")
    p.add_argument(
        "--schedule", type=Path, metavar="FILE",
        help="instead of these, what dit.train_router or dit.search wrote",
    )  # fmt: skip
    p.add_argument(
        "--forecast", type=numbers.forecast, metavar="g",
        help="extrapolate from the outputs computed last: 0 reuses the last as it is, 1 takes the line through two "
        "(default: 0, or the file's own)",
    )  # fmt: skip
    p.add_argument(
        "--forecast-order", type=numbers.real(1, 3), metavar="ORDER",
        help="by the polynomial of this order (default: 1, or the file's own)",
    )  # fmt: skip


def cache_config(args: argparse.Namespace) -> LayerCacheConfig:
    """Raises ValueError for a file that is no schedule, or one given together with what it says itself."""
    forecast = {name: value for name in ("forecast", "forecast_order") if (value := getattr(args, name)) is not None}
    if args.schedule is None:
        return LayerCacheConfig(
            cache_interval=args.cache_interval or 2,
            outer_blocks=1 if args.outer_blocks is None else args.outer_blocks,
            reuse=args.reuse or "both",
            **forecast,
        )
    for name in ("cache_interval", "outer_blocks", "reuse"):
        if getattr(args, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} and --schedule say the same; give one of them")
    own = read_schedule(args.schedule)
    return LayerCacheConfig.from_json({**own.to_json(), **forecast})
