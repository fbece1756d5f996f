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
        error: (T, T), what it costs to use step i's feature at step j, for j > i; the rest is not looked at.
        k: how many steps are full, 1 to T.

    Returns:
        The full steps in order, and the sum of error[i, j] over all other steps j, i being the last full one before j.
        Of several equally good schedules it is the one whose last full step is the earliest, then the one before it.

    Raises:
        ValueError: an error that is no square matrix, or is negative or not finite; a k out of range.
    """
    steps = len(error)
    if not 1 <= k <= steps:
        raise ValueError(f"{k} full steps of {steps}; there must be 1 to {steps}")
    return _search(error, k)[-1]


def all_schedules(error: np.ndarray) -> list[tuple[list[int], float]]:
    """`best_schedule` for k = 1, …, T in one pass of O(T³)."""
    return _search(error, len(error))


def total_error(error: np.ndarray, steps: list[int]) -> float:
    """The sum of error[i, j] of the schedule with these full steps, in order and beginning with 0."""
    ends = [*steps[1:], len(error)]
    return float(sum(error[i, i + 1 : end].sum() for i, end in zip(steps, ends, strict=True)))


def _search(error: np.ndarray, most: int) -> list[tuple[list[int], float]]:
    error = np.asarray(error, dtype=np.float64)
    steps = len(error)
    if error.shape != (steps, steps) or not steps:
        raise ValueError(f"error has the shape {error.shape}; it must be (T, T)")
    later = np.triu(error, 1)
    if not (np.isfinite(later).all() and (later >= 0).all()):
        raise ValueError("error has values that are negative or not finite")
    # segment[i, n]: full step i serves all steps up to n − 1, and n is the next full one, or the end.
    segment = np.full((steps, steps + 1), np.inf)
    for i in range(steps):
        segment[i, i + 1 :] = np.concatenate([[0.0], later[i, i + 1 :].cumsum()])
    least = np.full(steps + 1, np.inf)  # of the steps before n, with k full ones among them, and n a full one
    least[0] = 0
    begins, found = [], []
    for k in range(1, most + 1):
        totals = least[:-1, None] + segment
        begins.append(totals.argmin(axis=0))  # the first of equal ones
        least = totals.min(axis=0)
        schedule, end = [], steps
        for begin in reversed(begins):
            end = int(begin[end])
            schedule.append(end)
        assert len(schedule) == k and end == 0
        found.append((schedule[::-1], float(least[steps])))
    return found
