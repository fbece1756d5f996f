"""Differences between two sets of images, image k of both made from the same noise and prompt, with 95 % intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .intervals import Z95


class Difference(NamedTuple):
    """a − b, its 95 % interval, and the p-value of there being none (two-sided)."""

    difference: float
    low: float
    high: float
    p_value: float


def paired_difference(a: Sequence[float], b: Sequence[float]) -> Difference:
    """The mean difference of scores that images have one by one, such as CLIP Scores, by the paired t-test.

    Args:
        a: scores of the images of one set.
        b: of the other, in the same order.

    Raises:
        ValueError: different numbers of scores, or fewer than two.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} scores; pairs need one of both for every image")
    if len(a) < 2:
        raise ValueError(f"{len(a)} pair of scores; an interval needs at least 2")
    differences = np.subtract(a, b)
    mean = float(differences.mean())
    if np.ptp(differences) == 0:  # a t-test would divide by zero
        return Difference(mean, mean, mean, 0.0 if mean else 1.0)
    import scipy.stats  # imported late: it takes a second, for nothing on a page without comparisons

    test = scipy.stats.ttest_rel(a, b)
    interval = test.confidence_interval(0.95)
    return Difference(mean, float(interval.low), float(interval.high), float(test.pvalue))


def replicate_difference(
    a: float, b: float, replicates_a: Sequence[float], replicates_b: Sequence[float]
) -> Difference:
    """The difference of scores that only a set has, such as FIDs, by replicates of both.

    The interval is the difference ± 1.96 standard deviations of the replicates' differences.

    Args:
        a: the score of one set.
        b: of the other.
        replicates_a: of `a`, as `eval.metrics.fid.compute` has them.
        replicates_b: of `b`, with as many images, since only then a replicate of both has the same ones.

    Raises:
        ValueError: different numbers of replicates, or fewer than two.
    """
    if len(replicates_a) != len(replicates_b):
        raise ValueError(
            f"{len(replicates_a)} and {len(replicates_b)} replicates; compute both sets with the same number"
        )
    if len(replicates_a) < 2:
        raise ValueError(f"{len(replicates_a)} replicates; an interval needs at least 2, better 100")
    deviation = float(np.subtract(replicates_a, replicates_b).std(ddof=1))
    difference = a - b
    if deviation == 0:
        return Difference(difference, difference, difference, 0.0 if difference else 1.0)
    import scipy.stats

    p_value = float(2 * scipy.stats.norm.sf(abs(difference) / deviation))
    return Difference(difference, difference - Z95 * deviation, difference + Z95 * deviation, p_value)
