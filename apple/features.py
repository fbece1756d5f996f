"""The features that a run keeps of its full steps: `unets.cache.features` for arrays of MLX."""

from __future__ import annotations

import math
from collections.abc import Collection

import mlx.core as mx

from unets.cache.features import Forecast, extrapolation_weights, polynomial_weights


class FeatureCache:
    """One run's. A loop gets its step's feature, and puts in what a step made that got none.

    Args:
        full: positions of the loop that are full steps.
        num_calls: T, positions of the loop.
        forecast, order: g and the polynomial, as of `unets.cache.features.FeatureCache`. With g = 0 a step gets the
            feature that was kept last, and one is held at a time.

    Raises:
        ValueError: a forecast of another shape, or with a number that is not finite.
    """

    def __init__(self, full: Collection[int], num_calls: int, forecast: Forecast = 0.0, order: float = 1.0) -> None:
        self._full = frozenset(full)
        self._weights = extrapolation_weights(forecast, num_calls).numpy()  # g, (T,) or (T, C)
        self._order = order
        self._most = math.ceil(order) + 1 if self._weights.any() else 1
        self._kept: list[tuple[int, mx.array]] = []

    def get(self, i: int) -> mx.array | None:
        """The feature (B, H, W, C) for position i, None for a full step. Raises ValueError for g of other channels."""
        if i in self._full:
            if self._most == 1:
                self._kept.clear()  # or it would stay in memory through the full step
            return None
        positions, features = zip(*self._kept, strict=True)
        last, g = features[-1], self._weights[i]
        if not g.any() or len(features) == 1:
            return last
        if g.shape not in ((), last.shape[-1:]):
            raise ValueError(f"forecast has {len(g)} columns; the kept feature has {last.shape[-1]} channels")
        by = polynomial_weights(positions, i, self._order)
        way = sum(weight * (feature - last) for feature, weight in zip(features[:-1], by, strict=False))
        return (last + mx.array(g.tolist()) * way).astype(last.dtype)

    def put(self, i: int, feature: mx.array) -> None:
        """Keeps what the step at position i made."""
        self._kept = [*self._kept[max(0, len(self._kept) + 1 - self._most) :], (i, feature)]
