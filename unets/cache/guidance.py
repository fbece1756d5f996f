"""Classifier-free guidance with the unconditional half of the batch left out of some steps.

The guidance delta, conditional − unconditional, changes slowly from step to step. Where the conditional half is run
alone, that of earlier steps stands in: unconditional ≈ conditional − delta. It is extrapolated as the features are
(`FeatureCache`).
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from .features import FeatureCache, Forecast, extrapolation_weights


class GuidanceReuse:
    """One run's choice of the steps that run the conditional half alone, and the deltas that they go by.

    Args:
        refreshed_steps: positions of the loop that re-cache at m: full steps, and refresh steps if there are any.
        num_calls: T, positions of the loop.
        reuse_guidance: all other steps run the conditional half alone.
        guidance_stop: so does every step from position guidance_stop · T on, full ones too; 1 is none.
        forecast: of the features. The delta follows it on retrieve steps, channels on average; from the stop on it
            stays as it was, since a line does not hold for long.

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
        """The guidance delta to use at position i (B, …); None if both halves are to be run.

        The first step that is guided runs both, whatever the settings.
        """
        kept = self._deltas.get(i, batch_size)
        return None if kept is None else kept[0]

    def both_halves(self, i: int, noise: Tensor, delta: Tensor | None) -> Tensor:
        """Noise of both halves (2B, …), unconditional first, given it, or given the conditional half and a delta."""
        if delta is not None:
            return torch.cat([noise - delta, noise])
        if self._used:
            unconditional, conditional = noise.chunk(2)
            self._deltas.put(i, (conditional - unconditional,))
        return noise
