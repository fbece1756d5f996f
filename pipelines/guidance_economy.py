"""Classifier-free guidance with the unconditional half of the batch left out of some steps.

The difference of the two halves, conditional − unconditional, changes slowly from step to step. Where the conditional
half is run alone, that of earlier steps stands in: unconditional ≈ conditional − difference. It is carried on as the
features are (`KeptFeatures`).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor

from .kept_features import Forecast, KeptFeatures, gains_of


class GuidanceEconomy:
    """One run's choice of the steps that run the conditional half alone, and the differences that they go by.

    Args:
        renewed: positions of the loop at which the cache keeps anew: full steps, and refresh steps if there are any.
        num_calls: T, positions of the loop.
        reuse_guidance: all other steps run the conditional half alone.
        guidance_stop: so does every step from position guidance_stop · T on, full ones too; 1 is none.
        forecast: of the features. The difference follows it on retrieve steps, channels on average; from the stop on
            it stays as it was, since a line does not hold for long.

    Raises:
        ValueError: guidance_stop out of range, or a forecast that `KeptFeatures` refuses.
    """

    def __init__(
        self,
        renewed: Collection[int],
        num_calls: int,
        reuse_guidance: bool = False,
        guidance_stop: float = 1.0,
        forecast: Forecast = 0.0,
    ) -> None:
        if not 0 <= guidance_stop <= 1:
            raise ValueError(f"guidance_stop is {guidance_stop}; it must be 0 to 1, the share of steps with guidance")
        guided = [i for i in range(num_calls) if i < guidance_stop * num_calls]
        whole = [i for i in guided if i in renewed] if reuse_guidance else guided
        gains = gains_of(forecast, num_calls).clone()
        gains = gains.mean(dim=1) if gains.ndim == 2 else gains
        gains[len(guided) :] = 0
        self._used = len(whole) < num_calls
        self._differences = KeptFeatures(whole, num_calls, gains)

    def difference(self, i: int, rows: int) -> Tensor | None:
        """What stands in for the unconditional half at position i (rows, …); None if both halves are to be run.

        The first step that is guided runs both, whatever the settings.
        """
        return self._differences.at(i, rows)

    def halves(self, i: int, noise: Tensor, difference: Tensor | None) -> tuple[Tensor, Tensor]:
        """Unconditional and conditional noise (B, …), of both (2B, …) or of the conditional and a difference."""
        if difference is not None:
            return noise - difference, noise
        unconditional, conditional = noise.chunk(2)
        if self._used:
            self._differences.keep(i, conditional - unconditional)
        return unconditional, conditional


def half_if(alone: bool, condition: Any) -> Any:
    """The conditional half, the second, of a tensor (2B, …) or of each in a dictionary; all of it if not `alone`."""
    if not alone or condition is None:
        return condition
    if isinstance(condition, dict):
        return {name: half_if(alone, value) for name, value in condition.items()}
    return condition.chunk(2)[1]
