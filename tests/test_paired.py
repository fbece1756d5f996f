"""Differences of two sets against scipy."""

import numpy as np
import pytest
import scipy.stats

from eval.metrics.paired import paired_difference, replicate_difference
from tests.statistics_of import normal


def test_paired_difference_is_scipys():
    a = 25 + normal(0, 60)
    b = a - 0.2 + 0.3 * normal(1, 60)
    found = paired_difference(a.tolist(), b.tolist())
    one_sample = scipy.stats.ttest_1samp(a - b, 0)
    assert found.difference == pytest.approx((a - b).mean())
    assert (found.low, found.high) == pytest.approx(tuple(one_sample.confidence_interval()))
    assert found.p_value == pytest.approx(one_sample.pvalue)
    bootstrap = scipy.stats.bootstrap((a - b,), np.mean, rng=np.random.default_rng(2)).confidence_interval
    assert (found.low, found.high) == pytest.approx((bootstrap.low, bootstrap.high), abs=0.01)


def test_equal_sets_do_not_differ():
    assert paired_difference([1.0, 2.0], [1.0, 2.0]) == (0, 0, 0, 1)
    assert paired_difference([3.0, 2.0], [2.0, 1.0]) == (1, 1, 1, 0)
    assert replicate_difference(2.0, 2.0, [1.0, 3.0], [1.0, 3.0]) == (0, 0, 0, 1)


def test_replicate_difference():
    shared, own = normal(0, 1000), 0.1 * normal(1, 1000)
    found = replicate_difference(5.3, 5.0, 5.3 + shared + own, 5 + shared)
    assert found.difference == pytest.approx(0.3)
    assert (found.low, found.high) == pytest.approx((0.3 - 0.196, 0.3 + 0.196), abs=0.02)
    assert found.p_value == pytest.approx(2 * scipy.stats.norm.sf(0.3 / own.std(ddof=1)))


def test_refusals():
    for function in (paired_difference, lambda *lists: replicate_difference(1.0, 2.0, *lists)):
        with pytest.raises(ValueError, match="2 and 1 "):
            function([1.0, 2.0], [1.0])
        with pytest.raises(ValueError, match=r"^1 .*needs at least 2"):
            function([1.0], [1.0])
