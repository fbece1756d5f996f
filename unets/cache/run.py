"""The cache of one run. A denoising loop calls it once before and once after each call of the U-Net.

The paper's cache has one depth: a full step caches the feature at branch m, and the steps up to the next full one
retrieve it. With two depths, a full step also caches at a deeper branch, and some of the retrieve steps, *refresh
steps*, retrieve there and re-cache at m. Shallow features stay fresh; only deep features, which change slowest, go
stale.

    step        full  retrieve  refresh  retrieve  full …
    retrieves   –     at m      deeper   at m      –
    caches      both  –         at m     –         both

A step can also be *skipped*: the U-Net is not called, and the noise, for both halves of guidance, is extrapolated from
the last computed predictions by a polynomial. That pays off where a retrieve step costs a large fraction of a full one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .config import CacheConfig
from .features import FeatureCache, Kept
from .guidance import GuidanceReuse


@dataclass(frozen=True)
class Step:
    """How the U-Net is to be called at one position of the loop."""

    position: int
    branch: int | None  # where it retrieves or caches; None for neither
    cached: Kept | None  # what it retrieves; None for a full step
    keep_branch: int | None  # a shallower branch at which it also caches
    reuse_attention: bool
    guided: bool  # the noise of both halves of the batch is needed, unconditional and conditional
    guidance_delta: Tensor | None  # if given, only the conditional half is run
    noise: Tensor | None = None  # if given, the U-Net is not called: (B, …), or both halves (2B, …) if guided

    @property
    def skips(self) -> bool:
        """Whether the U-Net is not called."""
        return self.noise is not None

    @property
    def retrieve_branch(self) -> int | None:
        """Where it retrieves; None for a full step."""
        return None if self.cached is None else self.branch

    def expand(self, latents: Tensor) -> Tensor:
        """The latents (B, …) for the halves that the step runs: (2B, …) if it runs both."""
        return torch.cat([latents] * 2) if self.guided and self.guidance_delta is None else latents

    def select(self, condition: Any) -> Any:
        """The part of a condition (2B, …) for the halves that the step runs; a dictionary's values likewise."""
        if self.guidance_delta is None or condition is None:
            return condition
        if isinstance(condition, dict):
            return {name: self.select(value) for name, value in condition.items()}
        return condition.chunk(2)[1]

    @property
    def unet_arguments(self) -> dict[str, Any]:
        """The cache's arguments for the U-Net's forward."""
        arguments: dict[str, Any] = {
            "cache_branch_id": self.branch,
            "cached_feature": None if self.cached is None else self.cached[0],
            "keep_branch_id": self.keep_branch,
        }
        if self.reuse_attention:
            attention = None if self.cached is None or self.keep_branch is not None else self.cached[1:]
            arguments |= {"cached_attention": attention, "keep_attention": attention is None}
        return arguments


class CacheRun:
    """The cache of one run.

    Args:
        config: its settings.
        unet: the fork that is called.
        num_steps: inference steps, for which the schedule is made, as in the paper: the extra call of PLMS retrieves.
        num_calls: T, the number of calls of the U-Net, which are the positions of the loop.
        order: of the sampler. A second-order sampler calls the U-Net twice a step; the schedule then counts calls.
        frames: rows of a feature per row of the batch.

    Attributes:
        full_steps: positions of the full steps.
        refreshed_steps: positions of the steps that re-cache at m, the full ones and the refresh steps.
        skipped_steps: positions of the skipped steps. If guidance was switched off or on before one of them, there is
            no noise to extrapolate, and it retrieves instead.

    Raises:
        ValueError: an argument that the U-Net or the run's length does not allow, by name.
    """

    def __init__(
        self, config: CacheConfig, unet: Any, num_steps: int, num_calls: int, *, order: int = 1, frames: int = 1
    ) -> None:
        unet.check_branch(config.cache_branch_id)
        if config.refresh_branch_id is not None:
            unet.check_branch(config.refresh_branch_id, "refresh_branch_id")
        if config.reuse_attention:
            unet.check_attention(config.cache_branch_id)

        # cache (1): equation 6, every N-th step is full; or a schedule that is not uniform
        positions = num_calls if order > 1 else num_steps
        full = frozenset(config.full_steps(positions))
        cached = len(full) < positions
        self.full_steps = full if cached else frozenset(range(num_calls))
        self._branch = config.cache_branch_id if cached else None
        self._deep_branch = config.refresh_branch_id if cached else None
        self._reuse_attention = config.reuse_attention and cached
        self._frames = frames

        self.refreshed_steps = self.full_steps
        self._deep: FeatureCache | None = None
        if self._deep_branch is not None:
            self._deep = FeatureCache(self.full_steps, num_calls, config.forecast, config.forecast_order)
            self.refreshed_steps |= _steps_of("refresh", config, self.full_steps, num_calls)
        self.skipped_steps: frozenset[int] = frozenset()
        if config.skips and cached:
            if order > 1:
                raise ValueError("skip_interval and skip_steps need a sampler that calls the U-Net once a step")
            self.skipped_steps = _steps_of("skip", config, self.full_steps, num_calls) - self.refreshed_steps
            if len(self.full_steps | self.skipped_steps) == num_calls:
                self._branch = None  # nothing retrieves, so nothing is cached
        self._noises = FeatureCache(
            frozenset(range(num_calls)) - self.skipped_steps,
            num_calls,
            min(config.skip_order, 1.0),
            max(config.skip_order, 1.0),
        )
        self._features = FeatureCache(self.refreshed_steps, num_calls, config.forecast, config.forecast_order)
        self._reuse_guidance = config.reuse_guidance
        self._guidance = GuidanceReuse(
            self.refreshed_steps, num_calls, config.reuse_guidance, config.guidance_stop, config.forecast
        )

    def plan(self, i: int, batch_size: int, guided: bool = False) -> Step:
        """What the step at position i does, for latents of `batch_size` rows."""
        if i in self.skipped_steps and (noise := self._noises.get(i, batch_size * (2 if guided else 1))) is not None:
            return Step(i, None, None, None, False, guided, None, noise[0])
        delta = self._guidance.delta(i, batch_size) if guided else None
        rows = batch_size * self._frames * (2 if guided and delta is None else 1)
        branch, keep_branch = self._branch, None
        cached = self._features.get(i, rows, conditional_only=delta is not None)
        if self._deep is not None and cached is None:
            branch, keep_branch = self._deep_branch, self._branch
            cached = self._deep.get(i, rows, conditional_only=delta is not None)
        return Step(i, branch, cached, keep_branch, self._reuse_attention, guided, delta)

    def take(self, step: Step, output: Any) -> Tensor:
        """Caches what later steps retrieve; returns the predicted noise (B, …), of both halves (2B, …) if guided.

        Args:
            step: as returned by `plan`.
            output: the U-Net's; None for a skipped step.
        """
        if step.noise is not None:
            return step.noise
        attention = output.attention or () if self._reuse_attention else ()
        if step.keep_branch is not None:
            self._features.put(step.position, self._used_half(step, (output.shallow_feature, *attention)))
            attention = ()
        if step.cached is None and step.branch is not None:
            kept = (output.cached_feature, *attention)
            if self._deep is None:
                self._features.put(step.position, self._used_half(step, kept))
            else:
                self._deep.put(step.position, kept)  # refresh steps run both halves
        noise: Tensor = output.sample
        if step.guided:
            noise = self._guidance.both_halves(step.position, noise, step.guidance_delta)
        if self.skipped_steps:
            self._noises.put(step.position, (noise,))
        return noise

    def _used_half(self, step: Step, kept: Kept) -> Kept:
        """What retrieve steps use: with guidance reuse, a copy of the conditional half, so that the other is freed."""
        if self._reuse_guidance and step.guided and step.guidance_delta is None:
            return tuple(feature.chunk(2)[1].clone() for feature in kept)
        return kept


def _steps_of(kind: str, config: CacheConfig, full: frozenset[int], num_calls: int) -> frozenset[int]:
    """The refresh or the skipped steps: as listed, or by the interval, counted from the last full step."""
    interval, steps = getattr(config, f"{kind}_interval"), getattr(config, f"{kind}_steps")
    if interval is None:
        if steps is not None and max(steps) >= num_calls:
            raise ValueError(
                f"{kind}_steps has {max(steps)}, but the {num_calls} steps are numbered 0 to {num_calls - 1}"
            )
        return frozenset(steps or ()) - full
    found, last = set(), 0
    for i in range(num_calls):
        last = i if i in full else last
        if ((i - last) % interval == 0) == (kind == "refresh"):
            found.add(i)
    return frozenset(found) - full
