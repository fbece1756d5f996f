"""The settings of a run's cache: filled in by the command line, used by the loops, saved with the results."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self, TypedDict

from torch import Tensor

from .features import Forecast
from .schedule import check_schedule, full_steps


class FeatureExtensions(TypedDict, total=False):
    """The extensions beyond the paper, for any loop. All are off by default."""

    forecast: Forecast
    forecast_order: float
    refresh_interval: int | None
    refresh_steps: Sequence[int] | None
    refresh_branch_id: int | None
    reuse_attention: bool
    skip_interval: int | None
    skip_steps: Sequence[int] | None
    skip_order: float


class Extensions(FeatureExtensions, total=False):
    """The extensions for loops with classifier-free guidance."""

    reuse_guidance: bool
    guidance_stop: float


PAPER = ("cache_interval", "cache_branch_id", "uniform", "pow", "center", "cache_steps")


def _boolean(given: Any) -> bool:
    if given not in (True, False):
        raise ValueError
    return bool(given)


def _steps(given: Any) -> tuple[int, ...]:
    return tuple(map(operator.index, given))


def _number(given: Any) -> float:
    if isinstance(given, str) or not math.isfinite(number := float(given)):
        raise ValueError
    return number


def _numbers(given: Any) -> Any:
    """A number, or nested tuples of numbers, so that configurations can be compared and written."""
    if isinstance(given, Tensor):
        given = given.tolist()
    if isinstance(given, Sequence) and not isinstance(given, str):
        return tuple(map(_numbers, given))
    return _number(given)


CONVERTERS: dict[str, Callable[[Any], Any]] = {  # return an argument's value, or raise
    "cache_interval": operator.index,
    "cache_branch_id": operator.index,
    "uniform": _boolean,
    "pow": _number,
    "center": operator.index,
    "cache_steps": _steps,
    "forecast": _numbers,
    "forecast_order": _number,
    "reuse_guidance": _boolean,
    "guidance_stop": _number,
    "refresh_interval": operator.index,
    "refresh_steps": _steps,
    "refresh_branch_id": operator.index,
    "reuse_attention": _boolean,
    "skip_interval": operator.index,
    "skip_steps": _steps,
    "skip_order": _number,
}
EXPECTED: dict[Callable[[Any], Any], str] = {
    operator.index: "a whole number",
    _boolean: "True or False",
    _steps: "a list of whole numbers such as [0, 3, 6]",
    _number: "a finite number",
    _numbers: "a finite number such as 1, or one for each call",
}


@dataclass(frozen=True)
class CacheConfig:
    """The arguments of a pipeline's cache. The first six are the paper's; the others are extensions, off by default.

    Args:
        cache_interval: N. Every N-th step is full; 1, the default, is the stock pipeline bit for bit.
        cache_branch_id: m, the skip branch at which the deep feature is cached, 0 to M − 1.
        uniform, pow, center: `uniform=False` with `pow` and `center` concentrates full steps around step `center`.
        cache_steps: explicit list of full steps, instead of interval and schedule.
        forecast: g, how far a retrieve step's feature is extrapolated from the last cached ones (`FeatureCache`): 0
            copies, as in the paper, 1 is linear; or g of each call (T,), or of each call and channel (T, C).
        forecast_order: order of the extrapolating polynomial: 1 the line, 2 the parabola, 1.7 between them.
        reuse_guidance: retrieve steps run only the conditional half (`GuidanceReuse`).
        guidance_stop: fraction of the run after which guidance is always reused.
        refresh_interval, refresh_branch_id: every `refresh_interval` steps after a full step, retrieve at this deeper
            branch and re-cache at `cache_branch_id` (`CacheRun`).
        refresh_steps: explicit list of these steps, instead of the interval.
        reuse_attention: retrieve steps also reuse what attention added in earlier steps (`ShallowAttention`).
        skip_interval: of the steps that are neither full nor refresh steps, only every `skip_interval`-th after a full
            step retrieves; the others are skipped (`CacheRun`), and step 1 is full. A value as large as the number of
            steps skips all of them.
        skip_steps: explicit list of the skipped steps, instead of the interval.
        skip_order: order of the polynomial that extrapolates a skipped step's noise, 0 (copies) to 3.

    Raises:
        ValueError: an argument out of range, by name. What depends on the run is checked by `CacheRun`.
    """

    cache_interval: int = 1
    cache_branch_id: int = 0
    uniform: bool = True
    pow: float | None = None
    center: int | None = None
    cache_steps: Sequence[int] | None = None
    forecast: Forecast = 0.0
    forecast_order: float = 1.0
    reuse_guidance: bool = False
    guidance_stop: float = 1.0
    refresh_interval: int | None = None
    refresh_steps: Sequence[int] | None = None
    refresh_branch_id: int | None = None
    reuse_attention: bool = False
    skip_interval: int | None = None
    skip_steps: Sequence[int] | None = None
    skip_order: float = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            given = getattr(self, field.name)
            if given is not None or field.default is not None:  # None is valid where it is the default
                try:
                    object.__setattr__(self, field.name, CONVERTERS[field.name](given))
                except (TypeError, ValueError, OverflowError):
                    raise ValueError(
                        f"{field.name} is {given!r}; it must be {EXPECTED[CONVERTERS[field.name]]}"
                    ) from None
        check_schedule(**self._schedule)
        if self.cache_branch_id < 0:
            raise ValueError(f"cache_branch_id is {self.cache_branch_id}; skip branches are counted from 0")
        if not 0 <= self.guidance_stop <= 1:
            raise ValueError(
                f"guidance_stop is {self.guidance_stop}; it must be 0 to 1, the fraction of the run with guidance"
            )
        for name, least in (("forecast_order", 1), ("skip_order", 0)):
            if not least <= getattr(self, name) <= 3:
                raise ValueError(
                    f"{name} is {getattr(self, name):g}; it must be {least} to 3, such as 2 for a parabola"
                )
        for kind in ("refresh", "skip"):
            interval, steps = getattr(self, f"{kind}_interval"), getattr(self, f"{kind}_steps")
            if interval is not None and steps is not None:
                raise ValueError(f"{kind}_interval and {kind}_steps exclude each other; give one of them")
            if interval is not None and interval < 1:
                raise ValueError(f"{kind}_interval is {interval}; it must be at least 1")
            if steps is not None and (not steps or min(steps) < 1):
                raise ValueError(f"{kind}_steps is {list(steps)}; it must be steps from 1 on, since step 0 is full")
        refreshes = self.refresh_interval is not None or self.refresh_steps is not None
        if refreshes != (self.refresh_branch_id is not None):
            raise ValueError("refresh_interval and refresh_branch_id belong together, for example 4 and 5")
        if self.refresh_branch_id is not None and self.refresh_branch_id <= self.cache_branch_id:
            raise ValueError(
                f"refresh_branch_id is {self.refresh_branch_id}; it must be above cache_branch_id, "
                f"{self.cache_branch_id}"
            )
        for one, other in (("cache", "refresh"), ("cache", "skip"), ("refresh", "skip")):
            if both := set(getattr(self, f"{one}_steps") or ()) & set(getattr(self, f"{other}_steps") or ()):
                raise ValueError(f"{one}_steps and {other}_steps both have {min(both)}; a step is of one kind")

    def full_steps(self, num_steps: int) -> list[int]:
        """The full steps of a run of that length. Raises ValueError if the schedule does not fit it."""
        steps = full_steps(num_steps, **self._schedule)
        if (self.skip_interval or 1) > 1 and len(steps) < num_steps:
            steps = sorted({*steps, 1})  # a line needs a second computed noise
        return steps

    @property
    def skips(self) -> bool:
        """Whether steps can be skipped."""
        return self.skip_interval is not None or self.skip_steps is not None

    @property
    def _schedule(self) -> dict[str, Any]:
        """The arguments that say which steps are full."""
        return {name: getattr(self, name) for name in PAPER if name != "cache_branch_id"}

    @property
    def extensions(self) -> dict[str, Any]:
        """The extensions that are on."""
        values = ((f.name, getattr(self, f.name), f.default) for f in fields(self) if f.name not in PAPER)
        return {name: value for name, value, off in values if value != off}

    @property
    def arguments(self) -> dict[str, Any]:
        """As keyword arguments of a pipeline's call, without extensions that are off."""
        return {name: getattr(self, name) for name in PAPER} | self.extensions

    def refuse(self, *names: str) -> None:
        """Raises ValueError for the first of these extensions that is on, for a loop that does not have it."""
        for name in names:
            if name in self.extensions:
                raise ValueError(f"{name} is not available here; leave it out")

    def to_json(self) -> dict[str, Any]:
        """The paper's arguments and the extensions that are on, as JSON values."""
        return {name: _as_lists(value) for name, value in self.arguments.items()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """From the output of `to_json`; other entries are ignored. Raises as the class."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in content.items() if name in known})

    def name(self, schedule: str | None = None) -> str:
        """The settings in short for a folder's name, such as N5-forecast1-m1; `schedule` replaces the first part."""
        parts = [schedule or self._schedule_name()]
        for name, value in self.extensions.items():
            if isinstance(value, tuple):
                number = ".".join(map(str, value)) if name.endswith("_steps") else ""
            else:
                number = "" if value is True else f"{value:g}"
            parts.append(name.replace("_", "-") + number)
        return "-".join([*parts, f"m{self.cache_branch_id}"])

    def _schedule_name(self) -> str:
        if self.cache_steps is not None:
            return "steps" + ".".join(map(str, self.cache_steps))
        return f"N{self.cache_interval}" + ("" if self.uniform else f"-center{self.center}-pow{self.pow}")


def _as_lists(value: Any) -> Any:
    return [_as_lists(part) for part in value] if isinstance(value, tuple) else value
