"""The cache of a run whose host splits its calls of the U-Net: one condition at a time, two in a batch, or tiles.

How conditions are batched can change from step to step, depending on free memory. So each condition has its own cache,
under a key from the host. A batch retrieves if all its conditions can; otherwise the step is full for all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .config import CacheConfig
from .run import CacheRun, Step


class CachedOutput(NamedTuple):
    """The output of a U-Net for a batch (B, …)."""

    sample: Tensor  # the predicted noise
    cached_feature: Tensor | None  # what entered u_m from below; None: nothing is cached
    shallow_feature: Tensor | None  # the same at a shallower branch
    attention: None = None


@dataclass
class _Condition:
    """One condition's cache."""

    run: CacheRun
    position: int  # of its last call


class Call(NamedTuple):
    """How the U-Net is to be called."""

    conditions: list[_Condition]
    steps: list[Step]
    branch: int | None  # where it retrieves or caches; None for neither
    cached_feature: Tensor | None  # what it retrieves; None for a full step
    keep_branch: int | None  # a shallower branch at which it also caches
    noise: Tensor | None  # if given, the U-Net is not called


class SplitRun:
    """The caches of one run's conditions.

    A position can have several calls, with second-order samplers or tiles. A condition's n-th call at a position
    retrieves what its n-th call at an earlier position cached, and is full if there was none. It is also full if the
    condition missed a step that would have refreshed its feature: a stale feature is never used.

    Args:
        config: its settings, without attention or guidance reuse.
        unet: has the U-Net's `check_branch`.
        num_steps: inference steps, for which the schedule is made.
        num_calls: T, the number of positions, if it is larger.

    Raises:
        ValueError: as `CacheRun`; an extension that is not available.
    """

    def __init__(self, config: CacheConfig, unet: Any, num_steps: int, num_calls: int | None = None) -> None:
        config.refuse("reuse_attention", "reuse_guidance", "guidance_stop")
        self._for_run = (config, unet, num_steps, num_steps if num_calls is None else num_calls)
        CacheRun(*self._for_run)  # raises now instead of at the first step
        self._conditions: dict[Hashable, _Condition] = {}
        self._position = 0
        self._calls: Counter[Hashable] = Counter()  # at this position

    def plan(self, position: int, keys: Sequence[Hashable], rows: int) -> Call:
        """What the call at a position does, for a batch of conditions one after the other, of `rows` rows each."""
        if position < self._position:  # the sampler went back to more noise
            self._conditions.clear()
        if position != self._position:
            self._calls.clear()
        self._position = position
        # cache (1): equation 6, for each condition
        conditions = [self._condition(position, key) for key in keys]
        steps = [condition.run.plan(position, rows) for condition in conditions]
        if all(step.noise is not None for step in steps):
            return Call(conditions, steps, None, None, None, torch.cat([s.noise for s in steps if s.noise is not None]))
        # If only some conditions can retrieve or be skipped, the step is full for all of them.
        step = next((step for step in steps if step.cached is None and not step.skips), steps[0])
        features = [step.cached[0] for step in steps if step.cached is not None]
        feature = torch.cat(features) if len(features) == len(steps) else None
        return Call(conditions, steps, step.branch, feature, step.keep_branch, None)

    def take(self, call: Call, output: CachedOutput | None) -> Tensor:
        """Caches what later calls retrieve; returns the predicted noise. `output` is None for a skipped step."""
        if call.noise is not None:
            return call.noise
        assert output is not None
        parts = [(None,) * len(call.steps) if t is None else t.chunk(len(call.steps)) for t in output[:3]]
        for condition, step, sample, feature, shallow in zip(call.conditions, call.steps, *parts, strict=True):
            if not step.skips and sample is not None:
                condition.run.take(step, CachedOutput(sample, feature, shallow))
        return output.sample

    def _condition(self, position: int, key: Hashable) -> _Condition:
        """The cache for the key's next call at this position; a new one if its feature is stale."""
        numbered = (key, self._calls[key])
        self._calls[key] += 1
        for other, condition in list(self._conditions.items()):  # frees stale features
            if any(condition.position < i < position for i in condition.run.refreshed_steps):
                del self._conditions[other]
        condition = self._conditions.setdefault(numbered, _Condition(CacheRun(*self._for_run), position))
        condition.position = position
        return condition
