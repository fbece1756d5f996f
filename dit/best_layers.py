"""Which layers to compute at which steps: of all schedules within a budget, the one with the least total error.

The total error is a sum over layers and steps: what it costs, by itself, to reuse that layer's output there. Under it
layers have nothing to do with each other but the budget, and the best schedule is found exactly, in two stages:

1. For each layer, and each number of steps that compute it, the best ones, by dynamic programming over the steps
   (`eval.calibration.search`).
2. How many steps each layer gets. All attentions cost alike, and so do all MLPs. So what k computed layers of a kind
   are best spent on is a min-plus convolution of the layers' curves, and only the split between the two kinds is left
   to try.

What the sum leaves out is that errors of several layers and steps add up in one run, or cancel: what is found is to be
tried (`dit.search` does).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.calibration.search import all_forecast_schedules, all_schedules

from .macs import LayerMacs

Curve = Sequence[tuple[list[int], float]]
"""Of one layer: for 1, …, T steps that compute it the best ones, and their total error."""


@dataclass(frozen=True)
class Spent:
    """Of the layers of a kind: for K computed layers in all, from one each, the least error, and how many each has.

    Attributes:
        error: (K,), of `first`, `first` + 1, … computed layers.
        steps: (K, L), how many steps compute each layer.
    """

    first: int
    error: np.ndarray
    steps: np.ndarray


def curve(error: np.ndarray) -> Curve:
    """Of one layer, from `error` (T, T) of copies at [i, j], or (T, T, T) of forecasts, as the two searches take it."""
    return all_schedules(error) if error.ndim == 2 else all_forecast_schedules(error)


def spend(curves: Sequence[Curve]) -> Spent:
    """The least total error of layers of one kind, for every number of computed layers."""
    error, steps = np.zeros(1), np.zeros((1, 0), dtype=int)
    for one in curves:
        own = np.array([value for _, value in one])  # of 1, …, T steps
        totals = np.full((len(own), len(error) + len(own) - 1), np.inf)
        for k, value in enumerate(own):
            totals[k, k : k + len(error)] = error + value
        best = totals.argmin(axis=0)  # the fewest of this layer, of equal ones
        error = totals.min(axis=0)
        steps = np.column_stack([steps[np.arange(len(best)) - best], best + 1])
    return Spent(len(curves), error, steps)


def best_table(curves: Sequence[Curve], macs: LayerMacs, budget: float) -> tuple[np.ndarray, float]:
    """The best schedule with that speed-up in MACs, and its total error.

    Args:
        curves: of all 2 L layers of the transformer.
        budget: at least 1.

    Returns:
        bool (T, 2 L), and the sum of errors.

    Raises:
        ValueError: not even one step that computes each layer has it.
    """
    num_steps = len(curves[0])
    attention, mlp = spend(curves[::2]), spend(curves[1::2])
    left = num_steps * macs.full / budget - num_steps * macs.rest  # for layers
    for_mlps = (left - (attention.first + np.arange(len(attention.error))) * macs.attention) / macs.mlp
    most = np.floor(for_mlps * (1 + 1e-12)).astype(int) - mlp.first  # places in `mlp`; all that the budget allows
    allowed = most >= 0
    if not allowed.any():
        least = num_steps * macs.full / (num_steps * macs.rest + macs.full - macs.rest)
        raise ValueError(f"a budget of {budget:g}x is out of reach: one full step alone comes to {least:.2f}x")
    # The least error of at most so many MLPs, since the sum need not fall with every one more.
    places = np.array([int(mlp.error[: k + 1].argmin()) for k in range(len(mlp.error))])
    chosen = places[most.clip(0, len(places) - 1)]
    totals = np.where(allowed, attention.error + mlp.error[chosen], np.inf)
    a = int(totals.argmin())
    table = np.zeros((num_steps, len(curves)), dtype=bool)
    for kind, counts in enumerate((attention.steps[a], mlp.steps[chosen[a]])):
        for block, count in enumerate(counts):
            table[curves[2 * block + kind][count - 1][0], 2 * block + kind] = True
    return table, float(totals[a])


def total_error(errors: np.ndarray, table: np.ndarray) -> float:
    """The sum of a schedule's errors, of copies (2 L, T, T) or forecasts (2 L, T, T, T)."""
    total = 0.0
    for layer, error in enumerate(errors):
        before = last = 0
        for j, computed in enumerate(table[:, layer]):
            if computed:
                before, last = last, j
            else:
                total += float(error[last, j] if error.ndim == 2 else error[before, last, j])
    return total
