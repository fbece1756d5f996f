"""What a denoising loop asks before each call of the U-Net, and hands in after it: the cache of one run.

The paper's has one depth: a full step keeps the feature at branch m, the steps up to the next full one retrieve it.
With two depths, a full step also keeps at a deeper branch, and some of the retrieve steps, *refresh steps*, retrieve
there and keep anew at m. So the feature at m, which the cheapest steps retrieve, is never old, and the one that is old
is deep, where it matters least.

    step        full  retrieve  refresh  retrieve  full …
    retrieves   –     at m      deeper   at m      –
    keeps       both  –         at m     –         both
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

from .kept_features import Feature, Forecast, KeptFeatures


class Step(NamedTuple):
    """How the U-Net is to be called."""

    branch: int | None  # where it retrieves, or keeps; None does neither
    feature: Feature | None  # what it retrieves; None is a full step
    keep_branch: int | None  # a shallower branch, where it keeps as well


class RunCache:
    """One run's.

    Args:
        full: positions of the loop that are full steps.
        num_calls: T, positions of the loop.
        branch: m; None of a run in which every step is full.
        forecast: g of `KeptFeatures`, at both depths.
        refresh_interval: every so many steps from a full one is a refresh step; None is none.
        refresh_branch_id: the deeper branch.

    Attributes:
        renewed: positions of the steps that keep anew, the full ones and the refresh steps.

    Raises:
        ValueError: one of the last two without the other, or out of range; a forecast that `KeptFeatures` refuses.
    """

    def __init__(
        self,
        full: Collection[int],
        num_calls: int,
        branch: int | None,
        forecast: Forecast = 0.0,
        refresh_interval: int | None = None,
        refresh_branch_id: int | None = None,
    ) -> None:
        if (refresh_interval is None) != (refresh_branch_id is None):
            raise ValueError("refresh_interval and refresh_branch_id belong together, for example 4 and 5")
        if refresh_interval is not None and refresh_interval < 1:
            raise ValueError(f"refresh_interval is {refresh_interval}; it must be at least 1")
        self._branch, self._deep_branch = branch, refresh_branch_id
        if branch is None or refresh_interval is None or refresh_branch_id is None:
            self.renewed = frozenset(full)
            self._deep: KeptFeatures | None = None
            self._features = KeptFeatures(full, num_calls, forecast)
            return
        if refresh_branch_id <= branch:
            raise ValueError(f"refresh_branch_id is {refresh_branch_id}; it must be above cache_branch_id, {branch}")
        renewed, last = set(full), 0
        for i in range(num_calls):
            last = i if i in full else last
            if (i - last) % refresh_interval == 0:
                renewed.add(i)
        self.renewed = frozenset(renewed)
        self._deep = KeptFeatures(full, num_calls, forecast)
        self._features = KeptFeatures(renewed, num_calls, forecast)

    def step(self, i: int, rows: int, conditional: bool = False) -> Step:
        """At position i. `rows` and `conditional` as `KeptFeatures.at`."""
        feature = self._features.at(i, rows, conditional)
        if self._deep is None or feature is not None:
            return Step(self._branch, feature, None)
        return Step(self._deep_branch, self._deep.at(i, rows, conditional), self._branch)

    def keep(self, i: int, step: Step, output: Any) -> None:
        """Keeps of the U-Net's output at position i what the step made anew."""
        if step.keep_branch is not None:
            self._features.keep(i, output.shallow_feature)
        if step.feature is None:
            (self._deep or self._features).keep(i, output.cached_feature)


def check_cache_arguments(
    unet: Any,
    num_calls: int,
    *,
    cache_branch_id: int,
    forecast: Forecast = 0.0,
    refresh_interval: int | None = None,
    refresh_branch_id: int | None = None,
    reuse_attention: bool = False,
    **_: Any,
) -> None:
    """Raises ValueError, by name, for arguments of a pipeline's cache that a run of `num_calls` calls would refuse."""
    unet.check_branch(cache_branch_id)
    if refresh_branch_id is not None:
        unet.check_branch(refresh_branch_id, "refresh_branch_id")
    RunCache([0], num_calls, cache_branch_id, forecast, refresh_interval, refresh_branch_id)
    unet.read_cache(cache_branch_id, None, keep_attention=reuse_attention)
