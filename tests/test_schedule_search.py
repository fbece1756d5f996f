"""Schedules against an exhaustive search, and the errors of forecasts against a loop's."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.calibration.forecast_errors import (
    fitted_weight,
    forecast_errors,
    schedule_errors,
    schedule_weights,
    sensitivity,
    squared_distances,
)
from eval.calibration.search import all_forecast_schedules, all_schedules, best_schedule, total_error
from unets.cache.features import FeatureCache
from unets.cache.schedule import full_steps


@st.composite
def tables(draw):
    """Errors of small whole numbers, whose sums are exact and often equal."""
    steps = draw(st.integers(1, 7))
    can_be_full = draw(st.integers(max(1, steps - 2), steps))
    cells = draw(st.lists(st.integers(0, 6), min_size=can_be_full * steps, max_size=can_be_full * steps))
    return np.array(cells, dtype=np.float64).reshape(can_be_full, steps)


def all_of(positions, k):
    return [[0, *rest] for rest in itertools.combinations(range(1, positions), k - 1)]


def cost(error, steps):
    """Step by step, as a run would go."""
    total, kept = 0.0, 0
    for j in range(error.shape[1]):
        kept = j if j in steps else kept
        total += error[kept, j] if j != kept else 0.0
    return total


@given(tables())
@settings(max_examples=200)
def test_no_schedule_is_better_and_of_equal_ones_it_is_the_earliest(error):
    found = all_schedules(error)
    assert len(found) == len(error)
    for k, (steps, total) in enumerate(found, 1):
        expected = min(all_of(len(error), k), key=lambda s: (cost(error, s), s[::-1]))
        assert steps == expected
        assert total == cost(error, steps) == total_error(error, steps)
        assert best_schedule(error, k) == (steps, total)


@given(st.integers(2, 60), st.integers(0, 2**32 - 1))
def test_it_is_never_worse_than_an_interval_and_falls_with_more_full_steps(steps, seed):
    # A feature that is cached for longer has a larger error, so that one more full step never hurts.
    moves = np.random.default_rng(seed).random(steps)
    error = np.triu(moves.cumsum()[None] - moves.cumsum()[:, None]).clip(0)
    found = all_schedules(error)
    totals = [total for _, total in found]
    # sums in another order
    assert all(b <= a + 1e-9 for a, b in itertools.pairwise(totals))
    for interval in range(1, steps + 1):
        uniform = full_steps(steps, interval)
        assert totals[len(uniform) - 1] <= total_error(error, uniform) + 1e-9


@pytest.mark.parametrize(
    "error, k, words",
    [
        (np.zeros((3, 3)), 4, "4 full steps of 3"),
        (np.zeros((3, 3)), 0, "0 full steps"),
        (np.zeros((4, 3)), 1, "shape"),
        (-np.ones((3, 3)), 1, "negative"),
        (np.full((3, 3), np.nan), 1, "not finite"),
    ],
)
def test_a_wrong_table_is_refused(error, k, words):
    with pytest.raises(ValueError, match=words):
        best_schedule(error, k)


@st.composite
def forecast_tables(draw):
    steps = draw(st.integers(1, 6))
    can_be_full = draw(st.integers(max(1, steps - 2), steps))
    cells = draw(st.lists(st.integers(0, 6), min_size=can_be_full**2 * steps, max_size=can_be_full**2 * steps))
    return np.array(cells, dtype=np.float64).reshape(can_be_full, can_be_full, steps)


def forecast_cost(error, steps):
    total, kept = 0.0, [0]
    for j in range(error.shape[2]):
        if j in steps:
            kept.append(j)
        else:
            total += error[kept[-2], kept[-1], j]
    return total


@given(forecast_tables())
@settings(max_examples=200)
def test_with_a_forecast_too_no_schedule_is_better_and_of_equal_ones_it_is_the_earliest(error):
    found = all_forecast_schedules(error)
    assert len(found) == len(error)
    for k, (steps, total) in enumerate(found, 1):
        assert steps == min(all_of(len(error), k), key=lambda s: (forecast_cost(error, s), s[::-1]))
        assert total == forecast_cost(error, steps)


@given(tables())
def test_a_forecast_that_does_not_look_at_the_step_before_is_a_copy(error):
    assert all_forecast_schedules(np.repeat(error[None], len(error), axis=0)) == all_schedules(error)


@pytest.mark.parametrize(
    "error, words",
    [
        (np.zeros((3, 3)), "shape"),
        (np.zeros((4, 4, 3)), "shape"),
        (-np.ones((3, 3, 3)), "negative"),
        (np.full((3, 3, 3), np.inf), "not finite"),
    ],
)
def test_a_wrong_forecast_table_is_refused(error, words):
    with pytest.raises(ValueError, match=words):
        all_forecast_schedules(error)


def moving_features(seed, steps=9):
    """Features (2, 3, 4, 4) of a run that go somewhere, far from 0."""
    rng = np.random.default_rng(seed)
    moves = rng.normal(size=(2, steps, 2, 3, 4, 4)).cumsum(1)
    return list(torch.from_numpy(100 + moves[0] + moves[1].cumsum(0) / 3).float())


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_distances_are_those_of_the_features(seed):
    features = moving_features(seed)
    expected = [[float((a.double() - b.double()).square().mean()) for b in features] for a in features]
    np.testing.assert_allclose(squared_distances(features), expected, rtol=1e-9, atol=1e-12)


def errors_of_a_loop(features, steps, forecast):
    """What each step's feature is off by in a loop with `FeatureCache`."""
    kept, errors = FeatureCache(steps, len(features), forecast), []
    for j, feature in enumerate(features):
        given = kept.get(j, 2)
        if given is None:
            kept.put(j, (feature,))
        errors.append(0.0 if given is None else float((given[0].double() - feature.double()).square().mean()))
    return errors


@given(st.integers(0, 2**32 - 1), st.sets(st.integers(1, 8)), st.sampled_from([1.0, 0.6, "fit"]))
@settings(max_examples=50)
def test_errors_of_a_forecast_are_those_that_a_loop_makes(seed, more, forecast):
    features, steps = moving_features(seed), sorted({0, *more})
    distances = squared_distances(features)
    weights = schedule_weights(distances, steps, 4) if forecast == "fit" else [forecast] * 9
    made = errors_of_a_loop(features, steps, weights)
    # features near 100 are float32, and g is rounded to four digits
    close: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-4}
    np.testing.assert_allclose(schedule_errors(distances, steps, weights), made, **close)
    table = forecast_errors(distances, forecast, 4)
    kept = [0]
    for j in range(9):
        if j in steps:
            kept.append(j)
        else:
            np.testing.assert_allclose(table[kept[-2], kept[-1], j], made[j], **close)


@given(st.integers(0, 2**32 - 1), st.integers(1, 50))
def test_the_fitted_weight_is_ridge_regression_towards_one(seed, images):
    rng = np.random.default_rng(seed)
    x, u = rng.normal(size=(2, 12))
    ridge = np.linalg.lstsq(u[:, None], x, rcond=None)[1].item() / images
    rows, right = np.append(u, np.sqrt(ridge)), np.append(x, np.sqrt(ridge))
    expected = np.linalg.lstsq(rows[:, None], right, rcond=None)[0].item()
    assert fitted_weight(np.array(x @ x), np.array(x @ u), np.array(u @ u), images) == pytest.approx(expected)


def test_where_features_do_not_move_the_fitted_weight_is_one():
    assert fitted_weight(np.array(2.0), np.array(0.0), np.array(0.0), 8) == 1
    assert fitted_weight(np.array(0.0), np.array(0.0), np.array(0.0), 8) == 1
    assert schedule_weights(np.zeros((5, 5)), [0, 2], 8) == [0, 0, 0, 1, 1]


def test_sensitivity_is_the_factor_between_the_tables():
    distances = squared_distances(moving_features(0))
    distances[:, 4] = 0  # as where a timestep repeats
    factors = np.array([0, 2, 3, 1, 0, 5, 2, 2, 7.0])
    np.testing.assert_allclose(sensitivity(np.triu(distances * factors, 1), distances), factors)
