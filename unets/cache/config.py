"""How a run caches, in one frozen description that the command line fills, loops run by, and results are saved with."""

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
    """What goes beyond the paper, for any loop. All of it is off by default."""

    forecast: Forecast
    refresh_interval: int | None
    refresh_branch_id: int | None
    reuse_attention: bool


class Extensions(FeatureExtensions, total=False):
    """The same for loops with classifier-free guidance."""

    reuse_guidance: bool
    guidance_stop: float


PAPER = ("cache_interval", "cache_branch_id", "uniform", "pow", "center", "cache_steps")


def _yes_or_no(given: Any) -> bool:
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


KINDS: dict[str, Callable[[Any], Any]] = {  # what becomes of an argument, or is wrong with it
    "cache_interval": operator.index,
    "cache_branch_id": operator.index,
    "uniform": _yes_or_no,
    "pow": _number,
    "center": operator.index,
    "cache_steps": _steps,
    "forecast": _numbers,
    "reuse_guidance": _yes_or_no,
    "guidance_stop": _number,
    "refresh_interval": operator.index,
    "refresh_branch_id": operator.index,
    "reuse_attention": _yes_or_no,
}
WANTED: dict[Callable[[Any], Any], str] = {
    operator.index: "a whole number",
    _yes_or_no: "True or False",
    _steps: "a list of whole numbers such as [0, 3, 6]",
    _number: "a number, and finite",
    _numbers: "a number such as 1, and finite; or one for each call",
}


@dataclass(frozen=True)
class CacheConfig:
    """The arguments of a pipeline's cache. The first six are the paper's; the others go beyond it and are off.

    Args:
        cache_interval: N. Every N-th step is full; 1, the default, is the stock pipeline bit for bit.
        cache_branch_id: m, the skip branch at which the deep feature is kept, 0 to M − 1.
        uniform, pow, center: `uniform=False` with `pow` and `center` gathers full steps around step `center`.
        cache_steps: the full steps themselves, instead of interval and schedule.
        forecast: g, how far a retrieve step's feature is extrapolated from the last two cached (`FeatureCache`): 0
            copies as in the paper, 1 is the straight line; or g of each call (T,), or of each call and channel (T, C).
        reuse_guidance: retrieve steps run the conditional half alone (`GuidanceReuse`).
        guidance_stop: fraction of the run after which guidance is always reused.
        refresh_interval, refresh_branch_id: every so many steps after a full step, retrieve at this deeper branch, and
            re-cache at `cache_branch_id` (`CacheRun`).
        reuse_attention: retrieve steps take what attention adds from earlier steps too (`ShallowAttention`).

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
    reuse_guidance: bool = False
    guidance_stop: float = 1.0
    refresh_interval: int | None = None
    refresh_branch_id: int | None = None
    reuse_attention: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            given = getattr(self, field.name)
            if given is not None or field.default is not None:  # whose default is None, can be None
                try:
                    object.__setattr__(self, field.name, KINDS[field.name](given))
                except (TypeError, ValueError, OverflowError):
                    raise ValueError(f"{field.name} is {given!r}; it must be {WANTED[KINDS[field.name]]}") from None
        check_schedule(**self._schedule)
        if self.cache_branch_id < 0:
            raise ValueError(f"cache_branch_id is {self.cache_branch_id}; skip branches are counted from 0")
        if not 0 <= self.guidance_stop <= 1:
            raise ValueError(
                f"guidance_stop is {self.guidance_stop}; it must be 0 to 1, the fraction of the run with guidance"
            )
        if (self.refresh_interval is None) != (self.refresh_branch_id is None):
            raise ValueError("refresh_interval and refresh_branch_id belong together, for example 4 and 5")
        if self.refresh_interval is not None and self.refresh_interval < 1:
            raise ValueError(f"refresh_interval is {self.refresh_interval}; it must be at least 1")
        if self.refresh_branch_id is not None and self.refresh_branch_id <= self.cache_branch_id:
            raise ValueError(
                f"refresh_branch_id is {self.refresh_branch_id}; it must be above cache_branch_id, "
                f"{self.cache_branch_id}"
            )

    def full_steps(self, num_steps: int) -> list[int]:
        """The full steps of a run of that length. Raises ValueError if the schedule does not fit it."""
        return full_steps(num_steps, **self._schedule)

    @property
    def _schedule(self) -> dict[str, Any]:
        """The arguments that say which steps are full."""
        return {name: getattr(self, name) for name in PAPER if name != "cache_branch_id"}

    @property
    def extensions(self) -> dict[str, Any]:
        """What goes beyond the paper and is on."""
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
        """The paper's arguments, and the extensions that are on, as JSON has them."""
        return {name: _as_lists(value) for name, value in self.arguments.items()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Of what `to_json` gives, be there other entries beside it or not. Raises as the class."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in content.items() if name in known})

    def name(self, schedule: str | None = None) -> str:
        """The settings in few letters for a folder's name, such as N5-forecast1-m1; `schedule` replaces the first."""
        parts = [schedule or self._schedule_name()]
        for name, value in self.extensions.items():
            number = "" if value is True or isinstance(value, tuple) else f"{value:g}"
            parts.append(name.replace("_", "-") + number)
        return "-".join([*parts, f"m{self.cache_branch_id}"])

    def _schedule_name(self) -> str:
        if self.cache_steps is not None:
            return "steps" + ".".join(map(str, self.cache_steps))
        return f"N{self.cache_interval}" + ("" if self.uniform else f"-center{self.center}-pow{self.pow}")


def _as_lists(value: Any) -> Any:
    return [_as_lists(part) for part in value] if isinstance(value, tuple) else value
