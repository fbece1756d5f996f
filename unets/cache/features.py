"""The features that a run caches at full steps, and the feature that a retrieve step gets.

The paper copies: a retrieve step gets the last full step's feature (equation 5). Features change smoothly for a while,
so extrapolating the last few is more accurate. With p the polynomial through the last cached features, F_k the very
last, at position i of the loop

    F̂_i = F_k + g · (p(i) − F_k),    g = 0 the copy, g = 1 the polynomial.

In measurements, extrapolating in positions was as good as in timesteps, and better than in the logarithm of the
signal-to-noise ratio, which changes fastest at the end, where features hardly change.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

Forecast = float | Sequence[float] | Sequence[Sequence[float]] | Tensor
Kept = tuple[Tensor, ...]
"""What a step caches, (B, …) each: the deep feature (B, C, H, W) and, with attention reuse, what attention adds."""


class FeatureCache:
    """The cached features of one run. A loop calls `get` before each step, and `put` after a step that got none.

    Args:
        full: positions of the loop that are full steps.
        num_calls: T, the number of positions of the loop.
        forecast: g, for all positions, for each (T,), or for each position and channel (T, C). 0 copies, and then
            only one feature is held. What attention adds is extrapolated by the mean of g over channels.
        order: of the polynomial: 1 is the line through the last two features, 2 the parabola through the last three,
            and so on. Fractions mix two orders: 1.7 is the line and 0.7 of what the parabola adds. One feature more
            than the order is held; while there are fewer, the order is the highest that they allow.

    Raises:
        ValueError: a forecast of another shape, or with a number that is not finite.
    """

    def __init__(self, full: Collection[int], num_calls: int, forecast: Forecast = 0.0, order: float = 1.0) -> None:
        self._full = frozenset(full)
        weights = extrapolation_weights(forecast, num_calls)
        by_channel = weights if weights.ndim == 2 else weights[:, None]
        # Python numbers, so that a step dispatches no operations for them. Empty: copy.
        self._weights: list[float] = by_channel.mean(dim=1).tolist() if weights.any() else []
        self._by_channel = weights if weights.ndim == 2 else None
        self._order = order
        self._most = math.ceil(order) + 1 if self._weights else 1
        self._kept: list[tuple[int, Kept]] = []

    def get(self, i: int, batch_size: int, conditional_only: bool = False) -> Kept | None:
        """The feature for position i; None for a full step.

        Args:
            batch_size: of the step. If the cached one differs, guidance was switched off or on in the middle of the
                run, and the step is full.
            conditional_only: the step runs only the conditional half; cached features may have both.
        """
        if i in self._full:
            if self._most == 1:
                self._kept.clear()  # or it would stay in memory through the full step
            return None
        positions: list[int] = []
        cached: list[Kept] = []
        for k, kept in self._kept:
            halves = conditional_only and len(kept[0]) == 2 * batch_size
            positions.append(k)
            cached.append(tuple(f.chunk(2)[1] for f in kept) if halves else kept)
        if not cached or len(cached[-1][0]) != batch_size:
            self._kept.clear()
            return None
        while len(cached[0][0]) != batch_size:
            del positions[0], cached[0]
        last = cached[-1]
        if not self._weights or len(cached) == 1:
            return last
        weights, mean = polynomial_weights(positions, i, self._order), self._weights[i]
        first: float | Tensor = mean if self._by_channel is None else self._by_channel[i]
        g = [first, *[mean] * (len(last) - 1)]
        return tuple(_extrapolate(*one) for one in zip(zip(*cached, strict=True), [weights] * len(g), g, strict=True))

    def put(self, i: int, kept: Kept) -> None:
        """Caches the features of the step at position i."""
        self._kept = [*self._kept[max(0, len(self._kept) + 1 - self._most) :], (i, kept)]


def polynomial_weights(positions: Sequence[int], i: int, order: float) -> list[float]:
    """The weights of the values at these positions in the polynomial through the last of them, evaluated at i.

    Args:
        positions: ascending, at least one.
        order: 0 or more; a fraction mixes the two orders around it. If there are too few values, it is the highest
            order that they allow.

    Returns:
        A weight for each position. Their sum is 1.
    """
    order = min(order, len(positions) - 1)
    weights = [0.0] * len(positions)
    below = math.floor(order)
    for degree, share in ((below, below + 1 - order), (below + 1, order - below)):
        if share:
            used = range(len(positions) - 1 - degree, len(positions))
            for j in used:  # Lagrange's form
                others = (n for n in used if n != j)
                weights[j] += share * math.prod((i - positions[n]) / (positions[j] - positions[n]) for n in others)
    return weights


def _extrapolate(features: Sequence[Tensor], weights: Sequence[float], g: float | Tensor) -> Tensor:
    """last + g · (weighted sum of the features − last), with g a number or (C,)."""
    *earlier, last = features
    if isinstance(g, float):
        if g == 0:
            return last
        # One operation and one tensor, rounded only once in 16 bit.
        forecast = torch.lerp(last, earlier[-1], g * weights[-2])
        for feature, weight in zip(earlier[:-1], weights, strict=False):
            if weight:
                forecast.add_(feature - last, alpha=g * weight)
        return forecast
    if len(g) != last.shape[1]:
        raise ValueError(f"forecast has {len(g)} columns; the cached feature has {last.shape[1]} channels")
    factor = g[:, None, None].to(last.device)  # (C, 1, 1)
    change = sum(weight * (feature.float() - last.float()) for feature, weight in zip(earlier, weights, strict=False))
    return (last.float() + factor * change).to(last.dtype)


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
        raise ValueError("forecast has a number that is not finite; give finite numbers")
    return table
