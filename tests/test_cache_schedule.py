"""Which steps are full."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unets.cache.schedule import equation_7, full_steps, non_uniform

RELEASED = json.loads((Path(__file__).parent / "data" / "nonuniform.json").read_text())["cases"]

steps = st.integers(1, 300)
intervals = st.integers(1, 60)
powers = st.floats(1.01, 6)


@given(steps, intervals)
def test_uniform_is_every_nth_step(num_steps, interval):
    full = full_steps(num_steps, interval)
    assert full == [step for step in range(num_steps) if step % interval == 0]
    assert len(full) == math.ceil(num_steps / interval)


@given(st.data(), steps, intervals, powers)
def test_non_uniform_is_sorted_distinct_in_range_and_begins_with_0(data, num_steps, interval, pow):
    center = data.draw(st.integers(0, num_steps - 1))
    full = full_steps(num_steps, interval, uniform=False, pow=pow, center=center)
    assert full == sorted(set(full))
    assert full[0] == 0
    assert full[-1] < num_steps
    assert len(full) == math.ceil(num_steps / interval)


@given(st.data(), steps, intervals, powers)
def test_equation_7_is_sorted_distinct_in_range_and_begins_with_0(data, num_steps, interval, pow):
    center = data.draw(st.integers(0, num_steps - 1))
    full = equation_7(num_steps, interval, pow=pow, center=center)
    assert full == sorted(set(full))
    assert full[0] == 0
    assert full[-1] < num_steps
    assert len(full) <= math.ceil(num_steps / interval)


@given(st.data(), steps)
def test_a_given_list_is_kept_sorted(data, num_steps):
    given_steps = [*data.draw(st.lists(st.integers(0, num_steps - 1))), 0]
    assert full_steps(num_steps, cache_steps=given_steps) == sorted(set(given_steps))


@pytest.mark.parametrize("case", RELEASED, ids=lambda c: f"{c['model']}-N{c['interval']}")
def test_equals_the_schedules_of_the_released_code_and_of_the_paper(case):
    shape = {"pow": case["pow"], "center": case["center"]}
    assert non_uniform(case["steps"], case["interval"], **shape) == case["released"]
    assert equation_7(case["steps"], case["interval"], **shape) == case["equation_7"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"cache_interval": 0}, "cache_interval is 0"),
        ({"cache_interval": 5, "pow": 1.4}, "uniform=False"),
        ({"cache_interval": 5, "uniform": False, "pow": 1.4}, "pow and center"),
        ({"cache_interval": 5, "uniform": False, "pow": 1.0, "center": 3}, "pow is 1.0"),
        ({"cache_interval": 5, "uniform": False, "pow": 1.4, "center": 50}, "center is 50"),
        ({"cache_steps": [3, 6]}, "begin with 0"),
        ({"cache_steps": []}, "begin with 0"),
        ({"cache_steps": [0, 50]}, "numbered 0 to 49"),
        ({"cache_steps": [-1, 0]}, "begin with 0"),
    ],
)
def test_values_out_of_range_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        full_steps(50, **arguments)
