"""The predicted loss of a schedule of full, refresh, retrieve and skip steps, from one run with every step full.

A step that is not full extrapolates values of earlier steps by a polynomial: a retrieve step features at m, which full
and refresh steps cache; a refresh step features at the deeper branch, which full steps cache; a skipped step noises,
which all but skipped steps predict. The error of a sum Σ w_k F_k with Σ w_k = 1 as an estimate of F_j follows from the
squared distances d² between the F alone (Torgerson 1952): with c the weights minus 1 at j, Σ c = 0,

    |Σ_k c_k F_k|² = − ½ Σ_kl c_k c_l d²_kl

So does the error of the latents at step t from all skipped steps before it: it is Σ_{j ≤ t} I_j Σ_k c_jk ε_k, another
such sum, I_j being how much they change with the noise at j (`influence`). Errors that cancel in the run cancel there,
as those of a parabola mostly do, while those of a line add up. The loss is the root mean square of that over t.

The error of a retrieve or refresh step is its feature's error times how much its noise changes with it. The direction
is unknown, so lengths are added; and a step whose noise skipped steps use counts with their weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Self, cast

import numpy as np

from unets.cache.config import CacheConfig
from unets.cache.features import polynomial_weights

Kind = Literal["full", "refresh", "retrieve", "skip"]
ORDERS = (1.0, 1.5, 2.0, 2.5)  # of the polynomials that are tried


@dataclass(frozen=True)
class Schedule:
    """The kind of each step (T,), and the orders of the polynomials."""

    kinds: tuple[Kind, ...]
    forecast_order: float = 1.0
    skip_order: float = 1.0

    def steps(self, kind: Kind) -> tuple[int, ...]:
        """The steps of a kind."""
        return tuple(i for i, one in enumerate(self.kinds) if one == kind)

    @classmethod
    def of(cls, cache: CacheConfig, num_calls: int) -> Self:
        """The schedule of a configuration made by `cache`."""
        kinds = dict.fromkeys(cache.cache_steps or (), "full")
        kinds |= dict.fromkeys(cache.refresh_steps or (), "refresh") | dict.fromkeys(cache.skip_steps or (), "skip")
        found = cast(tuple[Kind, ...], tuple(kinds.get(i, "retrieve") for i in range(num_calls)))
        return cls(found, cache.forecast_order, cache.skip_order)

    def cache(self, branch: int, refresh_branch: int | None, forecast: float) -> CacheConfig:
        """The configuration that runs it."""
        refresh, skip = self.steps("refresh"), self.steps("skip")
        return CacheConfig(
            cache_branch_id=branch,
            cache_steps=self.steps("full"),
            forecast=forecast,
            forecast_order=self.forecast_order if forecast else 1.0,
            refresh_steps=refresh or None,
            refresh_branch_id=refresh_branch if refresh else None,
            skip_steps=skip or None,
            skip_order=self.skip_order if skip else 1.0,
        )


@dataclass(frozen=True, eq=False)
class Losses:
    """The measurements, and the loss that follows from them.

    Attributes:
        distances: (T, T) squared, by the kind of step that extrapolates these values: between features at m, between
            features at the deeper branch, between noises. A kind that is missing is not used.
        sensitivity: (T,), how much each step's noise changes with its feature, by kind, except for skipped steps.
        influence: (T,), how much the result changes with each step's noise.
        cost: of a step of each kind, in MACs.
        forecast: g, of features; 0 copies them.
        positions: the first P ≤ T steps can be full.
    """

    distances: dict[Kind, np.ndarray]
    sensitivity: dict[Kind, np.ndarray]
    influence: np.ndarray
    cost: dict[Kind, int]
    forecast: float
    positions: int
    _known: dict[tuple[Kind, int, float, tuple[int, ...]], float] = field(default_factory=dict)
    _weights: dict[tuple[int, float, tuple[int, ...]], np.ndarray] = field(default_factory=dict)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds that steps can have."""
        return ("full", *self.distances)

    @property
    def cheapest(self) -> Kind:
        """The cheapest kind other than full."""
        return min(self.distances, key=self.cost.__getitem__)

    @property
    def num_calls(self) -> int:
        """T."""
        return len(self.influence)

    def total(self, schedule: Schedule) -> float:
        """The loss of a run with this schedule."""
        features: list[int] = []
        deep: list[int] = []
        noises: list[int] = []
        off = np.zeros(self.num_calls)  # the error of each step's own noise
        used = np.zeros((self.num_calls, self.num_calls))  # by step, the weights of all steps' noises in its output
        for j, kind in enumerate(schedule.kinds):
            if kind == "retrieve":
                off[j] = self._feature_error(kind, j, schedule.forecast_order, features)
            elif kind == "refresh":
                off[j] = self._feature_error(kind, j, schedule.forecast_order, deep)
            if kind == "full":
                deep.append(j)
            if kind in ("full", "refresh"):
                features.append(j)
            if kind == "skip":
                near = tuple(noises[-math.ceil(schedule.skip_order) - 1 :])
                used[j, near] = self._polynomial(j, schedule.skip_order, near)
            else:
                noises.append(j)
                used[j, j] = 1.0
        loss = float(np.abs(self.influence @ used) @ off)
        if "skip" in self.distances and len(noises) < self.num_calls:
            apart = (self.influence[:, None] * (used - np.eye(self.num_calls))).cumsum(axis=0)
            squares = -((apart @ self.distances["skip"]) * apart).sum(axis=1) / 2
            loss += math.sqrt(max(float(squares.mean()), 0.0))
        return loss

    def macs(self, kinds: Sequence[Kind]) -> int:
        """The cost of the run."""
        return sum(self.cost[kind] for kind in kinds)

    def speed_up(self, kinds: Sequence[Kind]) -> float:
        """The reduction against a run with every step full."""
        return len(kinds) * self.cost["full"] / self.macs(kinds)

    def _polynomial(self, j: int, order: float, near: tuple[int, ...]) -> np.ndarray:
        known = (j, order, near)
        if known not in self._weights:
            self._weights[known] = np.array(polynomial_weights(near, j, order))
        return self._weights[known]

    def _feature_error(self, kind: Kind, j: int, order: float, kept: list[int]) -> float:
        near = tuple(kept[-math.ceil(order) - 1 :])
        known = (kind, j, order, near)
        if known not in self._known:
            weights = self.forecast * self._polynomial(j, order, near)
            weights[-1] += 1 - self.forecast
            squares, at = self.distances[kind], np.array(near)
            square = weights @ squares[at, j] - weights @ squares[np.ix_(at, at)] @ weights / 2
            self._known[known] = math.sqrt(max(float(square), 0.0)) * float(self.sensitivity[kind][j])
        return self._known[known]


def uniform(losses: Losses, budget: float) -> list[tuple[str, Schedule]]:
    """The schedules to use without calibration, by name: every N-th step full, the others of one kind, or of two.

    For each combination the N and order with the least loss within the budget.
    """
    num_calls, found = losses.num_calls, []
    for name, others in (("retrieve", ("retrieve",)), ("skip", ("skip",)), ("refresh", ("refresh", "retrieve"))):
        if not set(others) <= set(losses.kinds):
            continue
        candidates = []
        for n in range(2, num_calls):
            for every in range(2, n) if name == "refresh" else (n,):
                kinds = tuple(_regular(i, n, every, name, losses.positions) for i in range(num_calls))
                if losses.speed_up(kinds) >= budget:
                    candidates += [Schedule(kinds, order, order) for order in ORDERS]
        if candidates:
            found.append((f"uniform, {name}", min(candidates, key=losses.total)))
    return found


def _regular(i: int, n: int, every: int, name: str, positions: int) -> Kind:
    if i < positions and (i % n == 0 or (name == "skip" and i == 1)):
        return "full"
    if name == "skip":
        return "skip"
    return "refresh" if i % n % every == 0 and i % n else "retrieve"
