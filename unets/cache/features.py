"""The features that a run keeps of its full steps, and what a retrieve step is given of them.

The paper copies: a retrieve step takes the last full step's feature (equation 5). Features move evenly for a while,
so that a forecast from the last two is nearer. With F_k and F_k' kept at positions k and k' of the loop, at position i

    F̂_i = F_k + g · (F_k − F_k') · (i − k) / (k − k'),    g = 0 the copy, g = 1 the straight line.

Positions were measured to be as good a clock as timesteps, and a better one than the logarithm of the signal-to-noise
ratio, which moves fastest at the end, where features hardly do.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

Forecast = float | Sequence[float] | Sequence[Sequence[float]] | Tensor
Kept = tuple[Tensor, ...]
"""What a step keeps, (B, …) each: the deep feature (B, C, H, W), and what shallow attention adds, if that is kept."""


class FeatureCache:
    """One run's. A loop gets its step's feature, and puts in what a step made that got none.

    Args:
        full: positions of the loop that are full steps.
        num_calls: T, positions of the loop.
        forecast: g, for all positions, for each (T,), or for each position and channel (T, C). 0 copies, and then
            one feature is held at a time, otherwise two. What attention adds has the channels' mean of g.

    Raises:
        ValueError: a forecast of another shape, or with a number that is not finite.
    """

    def __init__(self, full: Collection[int], num_calls: int, forecast: Forecast = 0.0) -> None:
        self._full = frozenset(full)
        weights = extrapolation_weights(forecast, num_calls)
        self._weights = weights if weights.any() else None  # None copies
        self._kept: list[tuple[int, Kept]] = []

    def get(self, i: int, batch_size: int, conditional_only: bool = False) -> Kept | None:
        """What is cached for position i, None for a full step.

        Args:
            batch_size: of what is cached. Where that is another, guidance was switched off or on in the middle, and the
                step is a full one.
            conditional_only: the batch is the conditional half alone, of features that may be of both halves.
        """
        if i in self._full:
            if self._weights is None:
                self._kept.clear()  # or it would stay in memory through the full step
            return None
        cached = [
            (k, tuple(f.chunk(2)[1] for f in kept) if conditional_only and len(kept[0]) == 2 * batch_size else kept)
            for k, kept in self._kept
        ]
        if not cached or len(cached[-1][1][0]) != batch_size:
            self._kept.clear()
            return None
        k, last = cached[-1]
        if self._weights is None or len(cached) < 2 or len(cached[0][1][0]) != batch_size:
            return last
        before, first = cached[0]
        weight = self._weights[i]
        if not weight.any():
            return last
        weights = [weight, *[weight.mean()] * (len(last) - 1)]
        scale = (i - k) / (k - before)
        return tuple(_extrapolate(a, b, g * scale) for a, b, g in zip(first, last, weights, strict=True))

    def put(self, i: int, kept: Kept) -> None:
        """Keeps what the step at position i made."""
        self._kept = [*(self._kept[-1:] if self._weights is not None else ()), (i, kept)]


def _extrapolate(first: Tensor, last: Tensor, factor: Tensor) -> Tensor:
    """On from `last` by `factor`, () or (C,), times the way from `first`."""
    if factor.ndim == 0:
        by: float | Tensor = factor.item()
    elif len(factor) == last.shape[1]:
        by = factor[:, None, None].to(last.device)  # (C, 1, 1)
    else:
        raise ValueError(f"forecast has {len(factor)} columns; the kept feature has {last.shape[1]} channels")
    return (last.float() + by * (last.float() - first.float())).to(last.dtype)


def extrapolation_weights(forecast: Forecast, num_calls: int) -> Tensor:
    """g of each position (T,), or of each position and channel (T, C), float32. Raises as `FeatureCache`."""
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
