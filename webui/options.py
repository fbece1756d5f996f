"""Reads the page's fields with the options, bounds and messages of the command line."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from common import numbers
from common.command_line import Parser
from common.shipped import RECOMMENDED
from comparison.arguments import add_picture_arguments
from pipelines.cache_options import EXTENSIONS, add_cache_arguments, cache_config
from unets.cache.config import CacheConfig

UNIFORM, NON_UNIFORM, LISTED = SCHEDULES = ("uniform", "non-uniform", "list of steps")
PAPER = "the paper's, N = 5, m = 1"
CUSTOM = "own settings"
PRESETS: dict[str, CacheConfig] = {
    PAPER: CacheConfig(cache_interval=5, cache_branch_id=1),
    **{f"{name} (recommended)": CacheConfig(**cache) for name, cache in RECOMMENDED.items()},
}

BY_SCHEDULE = {  # fields that only one schedule has
    UNIFORM: ("cache_interval",),
    NON_UNIFORM: ("cache_interval", "center", "pow"),
    LISTED: ("cache_steps", "refresh_steps", "skip_steps"),
}
NEUTRAL = {  # values that mean "left out"; an empty number field is 0
    "forecast": "0", "forecast_order": "1", "guidance_stop": "1", "skip_order": "1", "refresh_interval": "0",
    "refresh_branch_id": "0", "skip_interval": "0",
}  # fmt: skip
SHAPE = {"center": 15, "pow": 1.4}  # initial values of the non-uniform schedule
FORECAST = ("forecast", "forecast_order")
NUMBERS = ("refresh_interval", "refresh_branch_id", "guidance_stop", "skip_interval", "skip_order")
SWITCHES = ("reuse_attention", "reuse_guidance")
PAPER_FIELDS = ("schedule", "cache_interval", "cache_branch_id", "center", "pow", "cache_steps")
CACHE_FIELDS = (*PAPER_FIELDS, "refresh_steps", "skip_steps", *FORECAST, *NUMBERS, *SWITCHES)
RUN_FIELDS = ("prompt", "negative_prompt", "seed", "steps", "scheduler", "guidance_scale", "strength")
OWN_SCHEDULER = "own"


@dataclass(frozen=True)
class Options:
    """The options of a run, checked as far as they can be without a model."""

    prompt: str
    negative_prompt: str | None
    seed: int
    steps: int
    scheduler: str | None
    guidance_scale: float
    strength: float | None
    cache: CacheConfig
    command: str | None  # the same run on the command line; None if it has no option for what is asked


def parser() -> Parser:
    """The options of `stable_diffusion.py` that the page has, and the two lists that only calibration files have."""
    p = Parser(prog="stable_diffusion.py")
    add_picture_arguments(p, steps=50, guidance="")
    add_cache_arguments(p, interval=1, branch=0, extensions=EXTENSIONS)
    p.add_argument("--seed", type=numbers.seed, default=42)
    for name in ("refresh", "skip"):
        p.add_argument(f"--{name}-steps", type=numbers.wholes(1, numbers.MOST_STEPS))
    return p


def read_options(fields: Mapping[str, Any], command: str | None = None) -> Options:
    """The options of these fields.

    Args:
        fields: values by the names in `RUN_FIELDS` and `CACHE_FIELDS`; a field that is empty or missing is left out.
        command: the beginning of the command line, if there is one for such a run.

    Raises:
        ValueError: a value out of range, or values that don't go together, in one line that names the option.
    """
    argv = run_arguments(fields) + cache_arguments(fields)
    forecasts = _listed_forecast(fields.get("forecast"))
    args = _parse(argv)
    cache = cache_config(args)
    if forecasts is not None:
        cache = replace(cache, forecast=forecasts)
    if cache.refresh_steps is not None or cache.skip_steps is not None or forecasts is not None:
        command = None
    return Options(
        (args.prompt or [""])[0], args.negative_prompt, args.seed, args.steps, args.scheduler, args.guidance_scale,
        args.strength, cache, command and f"{command} {shlex.join(argv)}",
    )  # fmt: skip


def run_arguments(fields: Mapping[str, Any]) -> list[str]:
    """The command line's arguments for all but the cache."""
    given = {name: fields.get(name) for name in RUN_FIELDS}
    if given["scheduler"] == OWN_SCHEDULER:
        given["scheduler"] = None
    return _arguments(given)


def cache_arguments(fields: Mapping[str, Any]) -> list[str]:
    """The command line's arguments for the cache: those of the schedule that is chosen, and the extensions."""
    schedule = fields.get("schedule") or UNIFORM
    if schedule not in SCHEDULES:
        raise ValueError(f"the schedule is {schedule!r}; it is one of {', '.join(SCHEDULES)}")
    names = [*BY_SCHEDULE[schedule], "cache_branch_id", *FORECAST, *NUMBERS]
    given = {name: fields.get(name) for name in names}
    if schedule == LISTED and _text(given["cache_steps"]) == "":
        raise ValueError("the list of full steps is empty; give it, for example 0, 5, 10, 20, 35")
    if _listed_forecast(given["forecast"]) is not None:
        given["forecast"] = None
    switches = [f"--{name.replace('_', '-')}" for name in SWITCHES if fields.get(name)]
    return ["--non-uniform"] * (schedule == NON_UNIFORM) + _arguments(given) + switches


def fields_of(cache: CacheConfig) -> dict[str, Any]:
    """The fields for this cache: the reverse of `read_options`."""
    listed = cache.cache_steps is not None
    schedule = LISTED if listed else UNIFORM if cache.uniform else NON_UNIFORM
    values = {name: getattr(cache, name, None) for name in CACHE_FIELDS}
    lists = {name: ", ".join(map(str, values[name] or ())) for name in BY_SCHEDULE[LISTED]}
    forecast = cache.forecast
    shown = ", ".join(f"{g:g}" for g in forecast) if isinstance(forecast, tuple) else f"{forecast:g}"
    given = {name: value for name, value in values.items() if value is not None}
    off = {name: 0 for name in NUMBERS}
    return {**off, **SHAPE, **given, **lists, "schedule": schedule, "forecast": shown}


def can_be_shown(cache: CacheConfig) -> bool:
    """Whether the fields can describe this cache: not a forecast per channel, nor lists without full steps."""
    try:
        return read_options(fields_of(cache)).cache == cache
    except (TypeError, ValueError):
        return False


def preset_of(fields: Mapping[str, Any]) -> str:
    """The name of the preset that the fields match."""
    try:
        cache = read_options({name: fields.get(name) for name in CACHE_FIELDS}).cache
    except ValueError:
        return CUSTOM
    return next((name for name, preset in PRESETS.items() if preset == cache), CUSTOM)


def _parse(argv: list[str]) -> argparse.Namespace:
    p = parser()
    try:
        return p.parse_args(argv)
    except ValueError as error:
        raise ValueError(str(error).removesuffix(f" ({p.prog} --help)")) from None


def _arguments(given: Mapping[str, Any]) -> list[str]:
    """`--name=value` for each that is not empty; in this form a value may begin with a dash."""
    texts = {name: _text(value) for name, value in given.items()}
    given_texts = {name: text for name, text in texts.items() if text not in ("", NEUTRAL.get(name))}
    return [f"--{name.replace('_', '-')}={text}" for name, text in given_texts.items()]


def _text(value: Any) -> str:
    """As it would be typed: JSON has no whole numbers of its own, so 5.0 is 5."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def _listed_forecast(value: Any) -> tuple[float, ...] | None:
    """The forecast of each step, if there is more than one number."""
    parts = _text(value).split(",")
    if len(parts) == 1:
        return None
    try:
        return tuple(numbers.forecast(part) for part in parts)
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"--forecast has a number that {error}") from None
