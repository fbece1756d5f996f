"""Distances of distributions, against scipy, closed forms, loops and definitions."""

from unittest import mock

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

from eval.metrics.distributions import (
    Gaussian,
    RunningGaussian,
    RunningInceptionScore,
    frechet_distance,
    inside_balls,
    precision_recall,
)
from tests.statistics_of import gaussian, normal


@given(seed=st.integers(0, 10**6), size=st.integers(2, 12), number=st.integers(30, 60))
def test_frechet_distance_is_that_of_a_matrix_square_root(seed, size, number):
    a = gaussian(normal(seed, number, size) @ normal(seed + 1, size, size))
    b = gaussian(normal(seed + 2, number, size) @ normal(seed + 3, size, size) + 1)
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance).real
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)  # the square root of ill-conditioned products


@given(seed=st.integers(0, 10**6), size=st.integers(2, 12), number=st.integers(2, 30))
def test_frechet_distance_is_a_distance(seed, size, number):
    """Also of singular covariances, where number ≤ size."""
    a, b = (gaussian(normal(seed + k, number, size)) for k in range(2))
    assert abs(frechet_distance(a, a)) < 1e-10  # rounding of a trace of about `size`
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), abs=1e-10)
    assert frechet_distance(a, b) > 0


def test_frechet_distance_of_independent_features():
    """Between N(0, s²) and N(m, t²) in each of them: m² + (s − t)²."""
    s, t, m = np.array([1.0, 2, 0]), np.array([3.0, 2, 4]), np.array([0.5, 0, -1])
    distance = frechet_distance(Gaussian(np.zeros(3), np.diag(s**2)), Gaussian(m, np.diag(t**2)))
    assert distance == pytest.approx((m**2 + (s - t) ** 2).sum(), rel=1e-14)


def test_frechet_distance_refuses():
    good = gaussian(normal(0, 9, 3))
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance(good, Gaussian(good.mean * np.nan, good.covariance))
    with pytest.raises(ValueError, match="3 and 4 features"):
        frechet_distance(good, gaussian(normal(0, 9, 4)))


@pytest.mark.parametrize("offset", [0, 1e3])
def test_running_gaussian_is_that_of_all_rows(offset):
    rows = (normal(0, 500, 40) @ normal(1, 40, 40) + offset).astype(np.float32)
    running = RunningGaussian(40)
    for part in np.split(rows, [1, 7, 64, 300]):
        running.update(part)
    expected = np.cov(rows.astype(np.float64), rowvar=False)
    np.testing.assert_allclose(running.gaussian().mean, rows.astype(np.float64).mean(0), rtol=1e-10)
    np.testing.assert_allclose(running.gaussian().covariance, expected, atol=1e-10 * np.abs(expected).max())


@given(seed=st.integers(0, 10**6), number=st.integers(1, 40), batch=st.integers(1, 40), split=st.integers(1, 40))
def test_inception_score_is_its_definition(seed, number, batch, split):
    logits = normal(seed, number, 6) * 3
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    scores = []
    for k in range(0, number, split):
        part = probabilities[k : k + split]
        scores.append(np.exp((part * np.log(part / part.mean(0))).sum(1).mean()))
    running = RunningInceptionScore(split)
    for k in range(0, number, batch):
        running.update(probabilities[k : k + batch])
    assert running.value() == pytest.approx(np.mean(scores), rel=1e-12)


def test_inception_score_between_one_and_the_number_of_classes():
    running = RunningInceptionScore()
    running.update(np.tile(np.eye(10), (600, 1)))  # 6000 images: a split of 5000 and one of 1000
    assert running.value() == pytest.approx(10, rel=1e-14)
    assert len(running.scores) == 1
    running = RunningInceptionScore()
    running.update(np.tile(np.eye(10)[3], (50, 1)))
    assert running.value() == 1


def by_loop(a, b, k):
    """Share of the points of a that lie in a ball of b."""
    inside = 0
    for point in a:
        for i, centre in enumerate(b):
            radius = sorted(((centre - other) ** 2).sum() for j, other in enumerate(b) if j != i)[k - 1]
            if ((point - centre) ** 2).sum() <= radius:
                inside += 1
                break
    return inside / len(a)


@given(seed=st.integers(0, 10**6), n=st.integers(4, 20), m=st.integers(4, 20), k=st.integers(1, 3), tied=st.booleans())
def test_precision_and_recall_are_those_of_a_loop(seed, n, m, k, tied):
    """Whole numbers, so that there are duplicates and distances equal to a radius, or real ones."""
    a, b = normal(seed, n, 3), normal(seed + 1, m, 3) + 0.5
    if tied:
        a, b = a.round(), b.round()
    # Several blocks, also of fewer columns than k + 1.
    with mock.patch.multiple("eval.metrics.distributions", ROWS=5, COLUMNS=3):
        assert precision_recall(a, b, k=k) == (by_loop(a, b, k), by_loop(b, a, k))


def test_precision_and_recall_on_a_line():
    """With k = 3 the balls around 0, 1, …, 9 reach by 3 at the ends, by 2 within, by 2 next but one to the ends."""
    line = np.arange(10.0)[:, None]
    samples = np.array([-3.0, -3.01, 4.5, 12.0, 12.01, 13.0])[:, None]
    precision, _ = precision_recall(samples, line)
    assert precision == 3 / 6  # -3, 4.5 and 12
    assert precision_recall(line, line) == (1, 1)
    assert precision_recall(line, line + 100) == (0, 0)
    with pytest.raises(ValueError, match="more than 3 images"):
        precision_recall(line[:3], line)


def test_duplicates_are_at_distance_zero():
    """Four equal points and a sample equal to them, where rounding alone would decide."""
    points = np.repeat(normal(3, 1, 2048).astype(np.float32) * 100, 4, axis=0)
    assert precision_recall(points, points) == (1, 1)
    assert precision_recall(points + 1, points) == (0, 0)


# --- distances in float16, as OpenAI's evaluator has them -------------------------------------------------------------


def evaluators_distance(u, v):
    """By numpy's float16, an operation at a time; sums of products in float32."""
    u, v = u.astype(np.float16), v.astype(np.float16)
    norm_u, norm_v = (np.float16(np.square(x).sum(dtype=np.float32)) for x in (u, v))
    product = np.float16(u.astype(np.float32) @ v.astype(np.float32))
    return max(norm_u - np.float16(2) * product + norm_v, np.float16(0))


def by_evaluators_loop(a, b, k):
    inside = 0
    for point in a:
        for centre in b:
            radius = sorted(evaluators_distance(centre, other) for other in b)[k]  # the first is its own
            if evaluators_distance(point, centre) <= radius:
                inside += 1
                break
    return inside / len(a)


def test_float16_is_the_evaluators_formula():
    """Points that are near each other and far from 0, so that distances are rounded coarsely."""
    rng = np.random.default_rng(0)
    differing = 0
    for _ in range(20):
        a, b = (rng.integers(40, 64, (12, 3)).astype(np.float32) / 8 for _ in range(2))
        found = precision_recall(a, b, k=2, distances="float16")
        assert found == (by_evaluators_loop(a, b, 2), by_evaluators_loop(b, a, 2))
        differing += found != precision_recall(a, b, k=2)
    assert differing


def test_float16_of_numbers_it_holds_is_exact():
    a, b = (np.random.default_rng(seed).integers(-9, 9, (200, 5)).astype(np.float32) for seed in range(2))
    for ours, theirs in zip(inside_balls(a, b, distances="float16"), inside_balls(a, b), strict=True):
        assert np.array_equal(ours, theirs)


def test_float32_in_place_of_float16_where_it_overflows():
    """Squared norms over 65,504; then nothing is rounded to 11 bits."""
    a, b = (normal(seed, 60, 4).astype(np.float32) * 1000 for seed in range(2))
    assert precision_recall(a, b, distances="float16") == precision_recall(a, b)


def test_unknown_distances():
    with pytest.raises(ValueError, match="unknown distances 'float32'; there are float64, float16"):
        precision_recall(normal(0, 9, 3), normal(1, 9, 3), distances="float32")
