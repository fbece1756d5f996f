"""The cache's command-line options, and the configuration that they give."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from common import numbers
from common.reading import read_json
from unets.cache.config import CacheConfig

EXTENSIONS = ("forecast", "reuse_guidance", "guidance_stop", "refresh_interval", "reuse_attention", "skip_interval")
CALIBRATED = (  # the fields of a configuration that a calibration file has
    "cache_branch_id", "cache_steps", "forecast", "forecast_order", "refresh_steps", "refresh_branch_id", "skip_steps",
    "skip_order",
)  # fmt: skip


def add_cache_arguments(
    parser: argparse.ArgumentParser, *, interval: int, branch: int, extensions: Sequence[str] = ()
) -> None:
    """Adds interval, branch, schedule and the given `EXTENSIONS`. Underscores are for the authors' option names."""
    group = parser.add_argument_group("cache")
    one_of = group.add_mutually_exclusive_group()
    one_of.add_argument(
        "--cache-interval",
        "--cache_interval",
        type=numbers.interval,
        default=interval,
        metavar="N",
        help="every N-th step is full",
    )
    group.add_argument(
        "--cache-branch-id", "--cache_branch_id", type=numbers.branch, default=branch, metavar="m",
        help="skip branch of the cached feature, from 0",
    )  # fmt: skip
    group.add_argument("--non-uniform", action="store_true", help="concentrate full steps around --center")
    group.add_argument(
        "--center",
        type=numbers.whole(0, numbers.MOST_STEPS),
        metavar="STEP",
        help="centre of the non-uniform schedule, for example 15",
    )
    group.add_argument(
        "--pow", type=numbers.real(1, 10), help="power of the non-uniform schedule, above 1, for example 1.4"
    )
    group.add_argument(
        "--cache-steps",
        type=numbers.wholes(0, numbers.MOST_STEPS),
        metavar="0,3,…",
        help="explicit list of full steps, instead of an interval",
    )
    one_of.add_argument(
        "--calibrated", type=Path, metavar="FILE",
        help="take branch, full steps and forecast from a file written by eval.calibrate --out",
    )  # fmt: skip
    if extensions:
        group = parser.add_argument_group("beyond the paper")
    if "forecast" in extensions:
        group.add_argument(
            "--forecast", type=numbers.forecast, default=0.0, metavar="g",
            help="extrapolate from the last cached features (0 = copy, as in the paper; 1 = full extrapolation)",
        )  # fmt: skip
        group.add_argument(
            "--forecast-order", type=numbers.real(1, 3), default=1.0, metavar="ORDER",
            help="order of the extrapolating polynomial (1 = the line through two, 2 = the parabola through three)",
        )  # fmt: skip
    if "reuse_guidance" in extensions:
        group.add_argument(
            "--reuse-guidance", action="store_true",
            help="retrieve steps run only the conditional half, with the guidance delta of earlier steps",
        )  # fmt: skip
    if "guidance_stop" in extensions:
        group.add_argument(
            "--guidance-stop", type=numbers.real(0, 1), default=1.0, metavar="FRACTION",
            help="fraction of the run after which guidance is always reused",
        )  # fmt: skip
    if "refresh_interval" in extensions:
        group.add_argument(
            "--refresh-interval", type=numbers.interval, metavar="STEPS",
            help="every STEPS steps after a full step, retrieve at --refresh-branch-id and re-cache at m",
        )  # fmt: skip
        group.add_argument(
            "--refresh-branch-id", type=numbers.branch, metavar="m", help="a deeper skip branch, for example 5"
        )
    if "reuse_attention" in extensions:
        group.add_argument(
            "--reuse-attention", action="store_true",
            help="retrieve steps reuse what attention added in earlier steps, extrapolated with --forecast",
        )  # fmt: skip
    if "skip_interval" in extensions:
        group.add_argument(
            "--skip-interval", type=numbers.interval, metavar="STEPS",
            help="compute only every STEPS-th step after a full step, and skip the others altogether",
        )  # fmt: skip
        group.add_argument(
            "--skip-order", type=numbers.real(0, 3), default=1.0, metavar="ORDER",
            help="order of the polynomial that extrapolates a skipped step's noise, 0 (copies) to 3",
        )  # fmt: skip


def cache_config(args: argparse.Namespace) -> CacheConfig:
    """The configuration that the options give.

    Raises:
        ValueError: an option out of range, options that need or exclude each other, or as `read_calibration` and
            `_calibrated`.
    """
    if (args.pow is None) != (args.center is None):
        raise ValueError("--pow and --center belong together, for example --non-uniform --center 15 --pow 1.4")
    if args.non_uniform and args.pow is None:
        raise ValueError("--non-uniform needs --center and --pow, for example --center 15 --pow 1.4")
    if args.pow is not None and not args.non_uniform:
        raise ValueError("--center and --pow need --non-uniform")
    if args.cache_steps is not None and args.non_uniform:
        raise ValueError("give either --cache-steps or --non-uniform")
    names = [field.name for field in fields(CacheConfig)]
    given = {name: getattr(args, name) for name in names if hasattr(args, name)}
    try:
        config = CacheConfig(uniform=not args.non_uniform, **given)
    except ValueError as error:  # its message has the names of the Python arguments
        options = "|".join(name for name in names if name != "uniform")
        raise ValueError(re.sub(rf"\b({options})\b", lambda m: f"--{m[0].replace('_', '-')}", str(error))) from None
    return config if args.calibrated is None else _calibrated(config, args)


def cache_name(args: argparse.Namespace, config: CacheConfig) -> str:
    """The configuration's name, with the calibration file's if there is one."""
    return config.name(None if args.calibrated is None else f"calibrated-{args.calibrated.stem}")


@dataclass(frozen=True)
class Calibration:
    """A schedule found by eval.calibrate, for runs of `steps` steps."""

    steps: int
    cache: CacheConfig


def read_calibration(path: Path) -> Calibration:
    """Reads a file written by eval.calibrate --out. Raises ValueError for any other file."""
    try:
        content = read_json(path, dict)
        whole = (content["steps"], content["cache_branch_id"], *content["cache_steps"])
        if not all(type(number) is int for number in whole):
            raise ValueError
        config = CacheConfig.from_json({name: content[name] for name in CALIBRATED if name in content})
    except (ValueError, LookupError, TypeError):
        raise ValueError(
            f"--calibrated {path} cannot be read as a calibration; make one with python -m eval.calibrate --out FILE"
        ) from None
    return Calibration(content["steps"], config)


def _calibrated(config: CacheConfig, args: argparse.Namespace) -> CacheConfig:
    """The configuration with branch, full steps and forecast from the file.

    Raises:
        ValueError: a file for other steps or with an unsupported forecast; options that the file excludes.
    """
    file = f"--calibrated {args.calibrated}"
    found = read_calibration(args.calibrated)
    steps, cache = found.steps, found.cache
    if steps != args.steps:
        raise ValueError(f"{file} is for --steps {steps}, not {args.steps}; give --steps {steps}, or calibrate again")
    if args.non_uniform or config.cache_steps not in (None, cache.cache_steps):
        raise ValueError(f"{file} has the full steps; leave out --cache-steps and --non-uniform")
    if config.refresh_interval is not None or config.skip_interval is not None:
        raise ValueError(f"{file} sets the kind of every step; leave out --refresh-interval and --skip-interval")
    for name, option in (
        ("forecast", "forecast"),
        ("refresh_steps", "refresh_interval"),
        ("skip_steps", "skip_interval"),
    ):
        if name in cache.extensions and not hasattr(args, option):
            raise ValueError(f"{file} has {name}, which is not offered here; calibrate again without it")
    if config.forecast not in (0.0, cache.forecast):
        raise ValueError(f"{file} has its own forecast; leave out --forecast")
    return replace(config, **{name: getattr(cache, name) for name in CALIBRATED})
