"""Guidance reuse: some steps leave out the unconditional half of classifier-free guidance.

The guidance delta, conditional − unconditional, changes slowly from step to step. Where only the conditional half is
run, the delta of earlier steps replaces the other: unconditional ≈ conditional − delta. It is extrapolated like the
features (`FeatureCache`).
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from .features import FeatureCache, Forecast, extrapolation_weights


class GuidanceReuse:
    """Which steps of a run compute only the conditional half, and the deltas that they use.

    Args:
        refreshed_steps: positions of the loop that re-cache at m: full steps, and refresh steps if there are any.
        num_calls: T, the number of positions of the loop.
        reuse_guidance: all other steps run only the conditional half.
        guidance_stop: so does every step from position guidance_stop · T on, full ones too; 1 for none.
        forecast: as for the features. On retrieve steps the delta is extrapolated by its mean over channels; from the
            stop on the delta is held constant, since a line does not hold for long.

    Raises:
        ValueError: a forecast that `FeatureCache` refuses.
    """

    def __init__(
        self,
        refreshed_steps: Collection[int],
        num_calls: int,
        reuse_guidance: bool = False,
        guidance_stop: float = 1.0,
        forecast: Forecast = 0.0,
    ) -> None:
        guided = [i for i in range(num_calls) if i < guidance_stop * num_calls]
        both = [i for i in guided if i in refreshed_steps] if reuse_guidance else guided
        weights = extrapolation_weights(forecast, num_calls).clone()
        weights = weights.mean(dim=1) if weights.ndim == 2 else weights
        weights[len(guided) :] = 0
        self._used = len(both) < num_calls
        self._deltas = FeatureCache(both, num_calls, weights)

    def delta(self, i: int, batch_size: int) -> Tensor | None:
        """The guidance delta to use at position i (B, …); None if both halves run.

        The first guided step runs both, whatever the settings.
        """
        kept = self._deltas.get(i, batch_size)
        return None if kept is None else kept[0]

    def both_halves(self, i: int, noise: Tensor, delta: Tensor | None) -> Tensor:
        """The noise of both halves (2B, …), unconditional first; with a delta, from that of the conditional half."""
        if delta is not None:
            return torch.cat([noise - delta, noise])
        if self._used:
            unconditional, conditional = noise.chunk(2)
            self._deltas.put(i, (conditional - unconditional,))
        return noise
