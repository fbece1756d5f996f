"""The steps that should be full: of all schedules with k full steps, the one with the least total error.

A step that is not full retrieves from the last full step before it, so a schedule cuts the run into segments with
independent costs, and the best cuts are found exactly by dynamic programming over where the last segment begins
(as Bellman 1961 fits line segments to a curve). With a forecast a step extrapolates from the last two full steps, and
the search is over where the last two segments begin.
"""

from __future__ import annotations

import numpy as np


def best_schedule(error: np.ndarray, k: int) -> tuple[list[int], float]:
    """The schedule of `k` full steps with the least total error, step 0 always among them.

    Args:
        error: (P, T), the cost of using step i's feature at step j, for j > i; the rest is ignored. Only the first P of
            the T steps can be full, usually all.
        k: how many steps are full, 1 to P.

    Returns:
        The full steps in order, and the sum of error[i, j] over all other steps j, i being the last full one before j.
        Ties are broken by the earliest last full step, then by the one before it.

    Raises:
        ValueError: an error of another shape, or one that is negative or not finite; a k out of range.
    """
    if not 1 <= k <= len(error):
        raise ValueError(f"{k} full steps of {len(error)}; there must be 1 to {len(error)}")
    return _search(error, k)[-1]


def all_schedules(error: np.ndarray) -> list[tuple[list[int], float]]:
    """`best_schedule` for k = 1, …, P, in one pass of O(P² T)."""
    return _search(error, len(error))


def all_forecast_schedules(error: np.ndarray) -> list[tuple[list[int], float]]:
    """`all_schedules` if the cost of a step depends on the last two full steps, in time O(P³ T) and memory O(P² T).

    Args:
        error: (P, P, T), the cost at [k′, k, j] of using the features of the full steps k′ < k at step j > k, and at
            [0, 0, j] of using only that of step 0; the rest is ignored.

    Returns:
        For each number of full steps the steps and the sum of errors.

    Raises:
        ValueError: an error of another shape, or one that is negative or not finite.
    """
    error = np.asarray(error, dtype=np.float64)
    if error.ndim != 3 or not 1 <= error.shape[0] == error.shape[1] <= error.shape[2]:
        raise ValueError(f"error has the shape {error.shape}; it must be (P, P, T) with P up to T")
    can_be_full, _, steps = error.shape
    # least[m, k, n]: of the steps before n, m + 1 of them full, k the last one, where n is the next full one, or the
    # end; begins[m, k, n]: the full step before k.
    least = np.full((can_be_full, can_be_full, steps + 1), np.inf)
    begins = np.zeros(least.shape, dtype=np.int16 if steps < 2**15 else np.int32)
    for k in range(can_be_full):
        before = slice(0, max(k, 1))
        costs = error[before, k, k + 1 :]  # of k′ and j
        if not (np.isfinite(costs).all() and (costs >= 0).all()):
            raise ValueError("error has values that are negative or not finite")
        segment = np.concatenate([np.zeros((len(costs), 1)), costs.cumsum(axis=1)], axis=1)  # of k′ and n > k
        if k == 0:
            least[0, 0, 1:] = segment[0]
            continue
        for m in range(1, k + 1):
            totals = least[m - 1, before, k][:, None] + segment
            begins[m, k, k + 1 :] = totals.argmin(axis=0)  # the first of equal ones
            least[m, k, k + 1 :] = totals.min(axis=0)
    found = []
    for m in range(can_be_full):
        schedule, end = [int(least[m, :, steps].argmin())], steps
        for fewer in range(m, 0, -1):
            schedule.append(int(begins[fewer, schedule[-1], end]))
            end = schedule[-2]
        found.append((schedule[::-1], float(least[m, :, steps].min())))
    return found


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
