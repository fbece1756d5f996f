"""The features that a denoising loop keeps of its full steps, and what a retrieve step is given of them.

The paper copies: a retrieve step takes the last full step's feature (equation 5). Features move evenly for a while,
so that a forecast from the last two is nearer. With F_k and F_k' kept at positions k and k' of the loop, at position i

    F̂_i = F_k + g · (F_k − F_k') · (i − k) / (k − k'),    g = 0 the copy, g = 1 the straight line.

Positions were measured to be as good a clock as timesteps, and a better one than the logarithm of the signal-to-noise
ratio, which moves fastest at the end, where features hardly do.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

Forecast = float | Sequence[float] | Tensor
Feature = Any  # a Tensor (rows, C, H, W), or a tuple of such: the deep feature, and what shallow attention adds


class KeptFeatures:
    """One run's. A loop asks for its step's feature, and hands in what a step kept that was given none.

    Args:
        full: positions of the loop that are full steps.
        num_calls: T, positions of the loop.
        forecast: g, for all positions, for each (T,), or for each position and channel (T, C). 0 copies, and then
            one feature is held at a time, otherwise two. Of a tuple the first has g by channel, the others the
            channels' mean.

    Raises:
        ValueError: a forecast of another shape, or with a number that is not finite.
    """

    def __init__(self, full: Collection[int], num_calls: int, forecast: Forecast = 0.0) -> None:
        self._full = frozenset(full)
        gains = gains_of(forecast, num_calls)
        self._gains = gains if gains.any() else None  # None copies
        self._kept: list[tuple[int, Feature]] = []

    def at(self, i: int, rows: int, conditional: bool = False) -> Feature | None:
        """The feature (rows, C, H, W) for position i, None for a full step. Of a tuple, the tuple.

        Args:
            rows: of the U-Net's batch. Where what is kept has another number, guidance was switched off or on in the
                middle, and the step is a full one.
            conditional: the batch is the conditional half alone, of features that may be of both halves.
        """
        if i in self._full:
            if self._gains is None:
                self._kept.clear()  # else it would live through the full step
            return None
        features = [
            (k, _each(lambda f: f.chunk(2)[1], f) if conditional and _rows(f) == 2 * rows else f) for k, f in self._kept
        ]
        if not features or _rows(features[-1][1]) != rows:
            self._kept.clear()
            return None
        k, last = features[-1]
        if self._gains is None or len(features) < 2 or _rows(features[0][1]) != rows:
            return last
        before, first = features[0]
        gain = self._gains[i]
        if not gain.any():
            return last
        scale = (i - k) / (k - before)
        if not isinstance(last, tuple):
            return self._line(first, last, gain, scale)
        head, *others = zip(first, last, strict=True)
        return self._line(*head, gain, scale), *(self._line(*other, gain.mean(), scale) for other in others)

    def keep(self, i: int, feature: Feature | None) -> None:
        """Keeps what the step at position i made at the branch; None, of a run without a cache, is nothing."""
        if feature is not None:
            self._kept = [*(self._kept[-1:] if self._gains is not None else ()), (i, feature)]

    @staticmethod
    def _line(first: Tensor, last: Tensor, gain: Tensor, scale: float) -> Tensor:
        factor: Any = gain * scale  # () or (C,)
        if factor.ndim == 0:
            factor = factor.item()
        elif len(factor) == last.shape[1]:
            factor = factor[:, None, None].to(last.device)  # (C, 1, 1)
        else:
            raise ValueError(f"forecast has {len(factor)} columns; the kept feature has {last.shape[1]} channels")
        return (last.float() + factor * (last.float() - first.float())).to(last.dtype)


def _each(change: Callable[[Tensor], Tensor], feature: Feature) -> Feature:
    return tuple(change(f) for f in feature) if isinstance(feature, tuple) else change(feature)


def _rows(feature: Feature) -> int:
    return len(feature[0] if isinstance(feature, tuple) else feature)


def gains_of(forecast: Forecast, num_calls: int) -> Tensor:
    """g of each position (T,), or of each position and channel (T, C), float32. Raises as `KeptFeatures`."""
    table = torch.as_tensor(forecast, dtype=torch.float32, device="cpu")
    if table.ndim == 0:
        table = table.expand(num_calls)
    if table.ndim > 2 or len(table) != num_calls:
        raise ValueError(
            f"forecast has the shape {tuple(table.shape)}; it must be one number, or a table with a row for each of "
            f"the {num_calls} calls of the U-Net"
        )
    if not table.isfinite().all():
        raise ValueError("forecast has a number that is not finite")
    return table
