"""The steps that should be full: of all schedules with k full steps, the one with the least total error.

A step that is not full retrieves from the last full step before it, so a schedule cuts the run into segments, each with
a cost of its own, and the best cuts are found exactly by dynamic programming over where the last segment begins
(Bellman 1961, of curves by line segments).
"""

from __future__ import annotations

import numpy as np


def best_schedule(error: np.ndarray, k: int) -> tuple[list[int], float]:
    """The schedule of `k` full steps with the least total error, step 0 always among them.

    Args:
        error: (P, T), what it costs to use step i's feature at step j, for j > i; the rest is not looked at. Of the T
            steps the first P can be full; usually that is all.
        k: how many steps are full, 1 to P.

    Returns:
        The full steps in order, and the sum of error[i, j] over all other steps j, i being the last full one before j.
        Of several equally good schedules it is the one whose last full step is the earliest, then the one before it.

    Raises:
        ValueError: an error of another shape, or one that is negative or not finite; a k out of range.
    """
    if not 1 <= k <= len(error):
        raise ValueError(f"{k} full steps of {len(error)}; there must be 1 to {len(error)}")
    return _search(error, k)[-1]


def all_schedules(error: np.ndarray) -> list[tuple[list[int], float]]:
    """`best_schedule` for k = 1, …, P, in one pass of O(P² T)."""
    return _search(error, len(error))


def total_error(error: np.ndarray, steps: list[int]) -> float:
    """The sum of error[i, j] of the schedule with these full steps, in order and beginning with 0."""
    ends = [*steps[1:], error.shape[1]]
    return float(sum(error[i, i + 1 : end].sum() for i, end in zip(steps, ends, strict=True)))


def _search(error: np.ndarray, most: int) -> list[tuple[list[int], float]]:
    error = np.asarray(error, dtype=np.float64)
    if error.ndim != 2 or not 1 <= error.shape[0] <= error.shape[1]:
        raise ValueError(f"error has the shape {error.shape}; it must be (P, T) with P up to T")
    can_be_full, steps = error.shape
    later = np.triu(error, 1)
    if not (np.isfinite(later).all() and (later >= 0).all()):
        raise ValueError("error has values that are negative or not finite")
    # segment[i, n]: full step i serves all steps up to n − 1, and n is the next full one, or the end.
    segment = np.full((can_be_full, steps + 1), np.inf)
    for i in range(can_be_full):
        segment[i, i + 1 :] = np.concatenate([[0.0], later[i, i + 1 :].cumsum()])
    least = np.full(can_be_full, np.inf)  # of the steps before n, k of them full, where n is full too
    least[0] = 0
    begins: list[np.ndarray] = []
    found = []
    for _ in range(most):
        totals = least[:, None] + segment
        begins.append(totals.argmin(axis=0))  # the first of equal ones
        schedule, end = [], steps
        for begin in reversed(begins):
            end = int(begin[end])
            schedule.append(end)
        least = totals.min(axis=0)
        found.append((schedule[::-1], float(least[steps])))
        least = least[:can_be_full]
    return found
