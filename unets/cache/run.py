"""The cache of one run: all that a denoising loop talks to, once before each call of the U-Net and once after it.

The paper's has one depth: a full step keeps the feature at branch m, the steps up to the next full one retrieve it.
With two depths, a full step also keeps at a deeper branch, and some of the retrieve steps, *refresh steps*, retrieve
there and re-cache at m. Shallow features stay fresh; only deep features, which change slowest, go stale.

    step        full  retrieve  refresh  retrieve  full …
    retrieves   –     at m      deeper   at m      –
    keeps       both  –         at m     –         both

And a step can be *skipped*: the U-Net is not called, and the sampler is handed the noise that the polynomial through
the last computed ones has at this position, of both halves of guidance as a computed step would have given them. That
pays where a retrieve step costs much of a full one.
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
    branch: int | None  # where it retrieves, or keeps; None does neither
    cached: Kept | None  # what it retrieves; None is a full step
    keep_branch: int | None  # a shallower branch, where it keeps as well
    reuse_attention: bool
    guided: bool  # the noise is wanted of both halves of the batch, unconditional and conditional
    guidance_delta: Tensor | None  # given, the conditional half is run alone
    noise: Tensor | None = None  # given, the U-Net is not called: (B, …), of both halves (2B, …) if guided

    @property
    def skips(self) -> bool:
        """Whether the U-Net is not to be called."""
        return self.noise is not None

    @property
    def retrieve_branch(self) -> int | None:
        """Where it retrieves; None of a full step."""
        return None if self.cached is None else self.branch

    def expand(self, latents: Tensor) -> Tensor:
        """Latents (B, …) for the halves of the batch that the step runs, (2B, …) if it runs both."""
        return torch.cat([latents] * 2) if self.guided and self.guidance_delta is None else latents

    def select(self, condition: Any) -> Any:
        """The halves that the step runs of a condition (2B, …), or of each in a dictionary."""
        if self.guidance_delta is None or condition is None:
            return condition
        if isinstance(condition, dict):
            return {name: self.select(value) for name, value in condition.items()}
        return condition.chunk(2)[1]

    @property
    def unet_arguments(self) -> dict[str, Any]:
        """The cache's arguments of the U-Net's forward."""
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
        config: how it caches.
        unet: the fork that is called.
        num_steps: inference steps, for which the schedule is made, as in the paper: the one call more that PLMS makes
            retrieves.
        num_calls: T, positions of the loop, which are what is counted.
        order: of the sampler. One of second order calls the U-Net twice a step, and then each call is in the schedule.
        frames: rows of a feature for each row of the batch.

    Attributes:
        full_steps: positions of the full steps.
        refreshed_steps: positions of the steps that re-cache at m, the full ones and the refresh steps.
        skipped_steps: positions of the steps that are skipped. One at which there is no noise to go by, since guidance
            was switched off or on before, is not, and retrieves.

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
                self._branch = None  # nothing retrieves, so nothing is kept
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
        """Keeps what later steps retrieve; returns the predicted noise (B, …), of both halves (2B, …) if guided.

        Args:
            step: what `plan` said.
            output: the U-Net's; None of a step that was skipped.
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
        """What retrieve steps use of it: with guidance reused, the conditional half, in memory of its own."""
        if self._reuse_guidance and step.guided and step.guidance_delta is None:
            return tuple(feature.chunk(2)[1].clone() for feature in kept)
        return kept


def _steps_of(kind: str, config: CacheConfig, full: frozenset[int], num_calls: int) -> frozenset[int]:
    """The refresh steps or the skipped ones: those listed; or by the interval, counted from the last full step."""
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
