"""The features that a run keeps of its full steps, and what a retrieve step is given of them.

The paper copies: a retrieve step takes the last full step's feature (equation 5). Features move evenly for a while,
so that a forecast from the last few is nearer. With p the polynomial through those kept last, F_k being the last of
all, at position i of the loop

    F̂_i = F_k + g · (p(i) − F_k),    g = 0 the copy, g = 1 the polynomial.

Positions were measured to be as good a clock as timesteps, and a better one than the logarithm of the signal-to-noise
ratio, which moves fastest at the end, where features hardly do.
"""

from __future__ import annotations

import math
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
            one feature is held at a time. What attention adds has the channels' mean of g.
        order: of the polynomial, 1 the line through the last two features, 2 the parabola through the last three, and
            so on; between two, their mixture, 1.7 the line and 0.7 of what the parabola adds. So many and one more
            features are held. Before there are as many, the order is what those that there are allow.

    Raises:
        ValueError: a forecast of another shape, or with a number that is not finite.
    """

    def __init__(self, full: Collection[int], num_calls: int, forecast: Forecast = 0.0, order: float = 1.0) -> None:
        self._full = frozenset(full)
        weights = extrapolation_weights(forecast, num_calls)
        by_channel = weights if weights.ndim == 2 else weights[:, None]
        # Numbers of Python, of which nothing is dispatched at a step. Empty copies.
        self._weights: list[float] = by_channel.mean(dim=1).tolist() if weights.any() else []
        self._by_channel = weights if weights.ndim == 2 else None
        self._order = order
        self._most = math.ceil(order) + 1 if self._weights else 1
        self._kept: list[tuple[int, Kept]] = []

    def get(self, i: int, batch_size: int, conditional_only: bool = False) -> Kept | None:
        """What is cached for position i, None for a full step.

        Args:
            batch_size: of what is cached. Where that is another, guidance was switched off or on in the middle, and the
                step is a full one.
            conditional_only: the batch is the conditional half alone, of features that may be of both halves.
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
        by, mean = polynomial_weights(positions, i, self._order), self._weights[i]
        first: float | Tensor = mean if self._by_channel is None else self._by_channel[i]
        g = [first, *[mean] * (len(last) - 1)]
        return tuple(_extrapolate(*one) for one in zip(zip(*cached, strict=True), [by] * len(g), g, strict=True))

    def put(self, i: int, kept: Kept) -> None:
        """Keeps what the step at position i made."""
        self._kept = [*self._kept[max(0, len(self._kept) + 1 - self._most) :], (i, kept)]


def polynomial_weights(positions: Sequence[int], i: int, order: float) -> list[float]:
    """What each of the values at these positions counts for in the polynomial through the last of them, at i.

    Args:
        positions: ascending, at least one.
        order: 0 or more; not a whole number, it mixes the two orders beside it. Too high for so few values, it is the
            highest that they have.

    Returns:
        As many numbers, whose sum is 1.
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
    """From the last of the features by g, a number or (C,), times the way to their sum with the weights."""
    *earlier, last = features
    if isinstance(g, float):
        if g == 0:
            return last
        # One operation and one tensor, in 16 bit rounded once.
        forecast = torch.lerp(last, earlier[-1], g * weights[-2])
        for feature, weight in zip(earlier[:-1], weights, strict=False):
            if weight:
                forecast.add_(feature - last, alpha=g * weight)
        return forecast
    if len(g) != last.shape[1]:
        raise ValueError(f"forecast has {len(g)} columns; the kept feature has {last.shape[1]} channels")
    by = g[:, None, None].to(last.device)  # (C, 1, 1)
    way = sum(weight * (feature.float() - last.float()) for feature, weight in zip(earlier, weights, strict=False))
    return (last.float() + by * way).to(last.dtype)


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
