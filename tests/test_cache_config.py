"""The description of a cache: round trips, its names, what it refuses."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from common.shipped import ASSETS
from unets import CacheConfig
from unets.cache.config import PAPER

numbers = st.floats(-4, 4, width=32)
tables = st.integers(1, 5).flatmap(
    lambda channels: st.lists(st.lists(numbers, min_size=channels, max_size=channels), min_size=1, max_size=6)
)
forecasts = st.one_of(
    numbers,
    st.lists(numbers, min_size=1, max_size=6),
    tables,
    st.lists(numbers, min_size=1, max_size=6).map(torch.tensor),
    tables.map(torch.tensor),
)
schedules = st.one_of(
    st.fixed_dictionaries({"cache_interval": st.integers(1, 60)}),
    st.fixed_dictionaries(
        {
            "cache_interval": st.integers(1, 60),
            "uniform": st.just(False),
            "pow": st.floats(1, 10, exclude_min=True),
            "center": st.integers(0, 99),
        }
    ),
    st.lists(st.integers(0, 99)).flatmap(lambda steps: st.permutations([0, *steps])).map(lambda s: {"cache_steps": s}),
)


def later(first: int, last: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Steps that are of one kind, beyond those of the others."""
    return st.sets(st.integers(first, last), min_size=1).map(lambda steps: tuple(sorted(steps)))


refreshes: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"refresh_interval": st.integers(1, 20), "refresh_branch_id": st.integers(12, 20)}),
    st.fixed_dictionaries({"refresh_steps": later(100, 120), "refresh_branch_id": st.integers(12, 20)}),
)
skips: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"skip_interval": st.integers(1, 20), "skip_order": st.floats(0, 3)}),
    st.fixed_dictionaries({"skip_steps": later(121, 140), "skip_order": st.floats(0, 3)}),
)
others = st.fixed_dictionaries(
    {},
    optional={
        "cache_branch_id": st.integers(0, 11),
        "forecast": forecasts,
        "forecast_order": st.floats(1, 3),
        "reuse_guidance": st.booleans(),
        "guidance_stop": st.floats(0, 1),
        "reuse_attention": st.booleans(),
    },
)
configurations = st.tuples(schedules, refreshes, skips, others).map(
    lambda parts: parts[0] | parts[1] | parts[2] | parts[3]
)


# --- round trips -----------------------------------------------------------------------------------------------------


@given(configurations)
def test_json_round_trip(arguments):
    config = CacheConfig(**arguments)
    written = json.loads(json.dumps(config.to_json()))
    assert written == config.to_json()
    assert list(written)[: len(PAPER)] == list(PAPER)
    again = CacheConfig.from_json({"steps": 50, **written, "seed": 0})  # other entries of a file are ignored
    assert again == config and hash(again) == hash(config)
    assert again.name() == config.name()


@given(configurations)
def test_its_arguments_recreate_it(arguments):
    config = CacheConfig(**arguments)
    assert CacheConfig(**config.arguments) == config
    assert config.arguments.keys() == {*PAPER, *config.extensions}
    off = {f.name: f.default for f in dataclasses.fields(CacheConfig) if f.name not in PAPER}
    assert all(config.extensions[name] != off.get(name) for name in config.extensions)
    for name, value in arguments.items():
        if name not in ("cache_steps", "forecast"):
            assert config.arguments.get(name, off.get(name)) == value


@given(tables)
def test_a_forecast_is_the_same_as_lists_and_as_a_tensor(table):
    assert CacheConfig(forecast=table) == CacheConfig(forecast=torch.tensor(table))
    assert torch.equal(torch.tensor(CacheConfig(forecast=torch.tensor(table)).forecast), torch.tensor(table))
    assert CacheConfig(forecast=table).to_json()["forecast"] == table


@given(configurations, configurations)
def test_equal_settings_are_equal_configurations(one, other):
    a, b = CacheConfig(**one), CacheConfig(**other)
    assert (a == b) == (a.to_json() == b.to_json())
    assert len({a, b, CacheConfig(**one)}) == (1 if a == b else 2)


def test_it_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CacheConfig().cache_interval = 2  # type: ignore[misc]


def test_a_list_that_is_changed_later_changes_nothing():
    steps, forecast = [0, 3], [0.0, 1.0]
    config = CacheConfig(cache_steps=steps, forecast=forecast)
    steps.append(5)
    forecast[0] = 9.0
    assert config == CacheConfig(cache_steps=(0, 3), forecast=(0.0, 1.0))


SETTINGS = """{
 "weights": {"unet": "1c5f", "vae": "9a0b", "text_encoder": "77d1"},
 "prompts": {"name": "shapes", "count": 100000, "sha256": "53d9"},
 "scheduler": "plms", "rounding": "nearest", "seed": 0, "dtype": "float32",
 "num_inference_steps": 50, "guidance_scale": 2.5, "negative_prompt": null, "height": 64, "width": 64,
 "cache_interval": 12, "cache_branch_id": 0, "uniform": true, "pow": null, "center": null, "cache_steps": null,
 "forecast": 1.0, "refresh_interval": 4, "refresh_branch_id": 5, "reuse_attention": true
}"""


def test_a_settings_file_as_it_has_always_been_written_is_read_and_written_the_same():
    content = json.loads(SETTINGS)
    config = CacheConfig.from_json(content)
    assert config == CacheConfig(12, 0, forecast=1.0, refresh_interval=4, refresh_branch_id=5, reuse_attention=True)
    assert content | config.to_json() == content
    assert list(content)[-len(config.to_json()) :] == list(config.to_json())


@pytest.mark.parametrize("path", sorted(ASSETS.glob("*/calibrated-*.json")), ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_a_calibration_file_is_read(path: Path):
    content = json.loads(path.read_text())
    config = CacheConfig.from_json(content)
    assert config.cache_branch_id == content["cache_branch_id"]
    assert list(config.cache_steps or ()) == config.full_steps(content["steps"]) == content["cache_steps"]
    assert config.to_json()["forecast"] == content["forecast"]


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("N1-m0", {}),
        ("N5-m1", {"cache_interval": 5, "cache_branch_id": 1}),
        ("N5-center15-pow1.4-m0", {"cache_interval": 5, "uniform": False, "center": 15, "pow": 1.4}),
        ("steps0.3.6-m2", {"cache_interval": 5, "cache_steps": [0, 3, 6], "cache_branch_id": 2}),
        ("steps6.0.1-m0", {"cache_steps": [6, 0, 1]}),
        (
            "N12-forecast1-refresh-interval4-refresh-branch-id5-reuse-attention-m0",
            {
                "cache_interval": 12,
                "forecast": 1.0,
                "refresh_interval": 4,
                "refresh_branch_id": 5,
                "reuse_attention": True,
            },
        ),
        (
            "N5-forecast0.5-reuse-guidance-guidance-stop0.9-m1",
            {"cache_interval": 5, "cache_branch_id": 1, "forecast": 0.5, "reuse_guidance": True, "guidance_stop": 0.9},
        ),
        (
            "N4-skip-interval4-skip-order2.5-m2",
            {"cache_interval": 4, "cache_branch_id": 2, "skip_interval": 4, "skip_order": 2.5},
        ),
        (
            "N9-forecast1-forecast-order2-refresh-steps3.6-refresh-branch-id5-skip-steps1.2-m0",
            {
                "cache_interval": 9,
                "forecast": 1.0,
                "forecast_order": 2,
                "refresh_steps": [3, 6],
                "refresh_branch_id": 5,
                "skip_steps": [1, 2],
            },
        ),
        ("N5-guidance-stop0-m1", {"cache_interval": 5, "cache_branch_id": 1, "guidance_stop": 0.0}),
        ("N5-forecast-1-m1", {"cache_interval": 5, "cache_branch_id": 1, "forecast": -1.0}),
        ("N2-forecast-m0", {"cache_interval": 2, "forecast": [1.0, 0.5]}),
    ],
)
def test_names_are_those_that_folders_have_always_had(name, arguments):
    assert CacheConfig(**arguments).name() == name


def test_a_name_can_begin_with_the_calibrations():
    config = CacheConfig(cache_steps=[0, 2], cache_branch_id=2, forecast=[1.0] * 3)
    assert config.name("calibrated-2x") == "calibrated-2x-forecast-m2"


# --- what is refused -------------------------------------------------------------------------------------------------

NOT_FINITE = [math.nan, math.inf, [1.0, math.nan], [[0.0, -math.inf]], torch.tensor([[1.0, math.inf]])]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"cache_interval": 0}, "cache_interval is 0"),
        ({"cache_interval": -3}, "cache_interval is -3"),
        ({"cache_branch_id": -1}, "cache_branch_id is -1; skip branches are counted from 0"),
        ({"pow": 1.4}, "pow and center belong to the non-uniform schedule"),
        ({"center": 0}, "pow and center belong to the non-uniform schedule"),
        ({"uniform": False, "pow": 1.4}, "needs both pow and center"),
        ({"uniform": False, "center": 3}, "needs both pow and center"),
        ({"uniform": False, "pow": 1.0, "center": 3}, r"pow is 1\.0"),
        ({"uniform": False, "pow": 10.5, "center": 3}, r"pow is 10\.5"),
        ({"uniform": False, "pow": math.nan, "center": 3}, "pow is nan"),
        ({"uniform": False, "pow": 1.4, "center": -1}, "center is -1; steps are counted from 0"),
        ({"cache_steps": []}, r"cache_steps \[\] must begin with 0"),
        ({"cache_steps": [3, 6]}, r"cache_steps \[3, 6\] must begin with 0"),
        ({"cache_steps": [0, -1]}, r"cache_steps \[-1, 0\] must begin with 0"),
        *(({"forecast": forecast}, "forecast is") for forecast in NOT_FINITE),
        ({"guidance_stop": 2}, "guidance_stop is 2.0; it must be 0 to 1, the fraction of the run with guidance"),
        ({"guidance_stop": -0.1}, r"guidance_stop is -0\.1"),
        ({"guidance_stop": math.nan}, "guidance_stop is nan"),
        ({"refresh_interval": 3}, "refresh_interval and refresh_branch_id belong together"),
        ({"refresh_branch_id": 3}, "refresh_interval and refresh_branch_id belong together"),
        ({"refresh_interval": 0, "refresh_branch_id": 3}, "refresh_interval is 0"),
        ({"refresh_steps": [2]}, "refresh_interval and refresh_branch_id belong together"),
        ({"refresh_steps": [], "refresh_branch_id": 3}, r"refresh_steps is \[\]; it must be steps from 1 on"),
        (
            {"refresh_steps": [2], "refresh_interval": 2, "refresh_branch_id": 3},
            "refresh_interval and refresh_steps exclude each other",
        ),
        ({"forecast_order": 0.5}, r"forecast_order is 0\.5; it must be 1 to 3"),
        ({"forecast_order": 3.5}, r"forecast_order is 3\.5"),
        ({"skip_order": -1}, "skip_order is -1; it must be 0 to 3"),
        ({"skip_order": math.nan}, "skip_order is nan"),
        ({"skip_interval": 0}, "skip_interval is 0; it must be at least 1"),
        ({"skip_interval": 2, "skip_steps": [1]}, "skip_interval and skip_steps exclude each other; give one of them"),
        ({"skip_steps": [0, 1]}, r"skip_steps is \[0, 1\]; it must be steps from 1 on, since step 0 is full"),
        ({"cache_steps": [0, 4], "skip_steps": [4]}, "cache_steps and skip_steps both have 4; a step is of one kind"),
        (
            {"refresh_steps": [4], "refresh_branch_id": 3, "skip_steps": [3, 4]},
            "refresh_steps and skip_steps both have 4",
        ),
        (
            {"cache_branch_id": 3, "refresh_interval": 2, "refresh_branch_id": 3},
            "refresh_branch_id is 3; it must be above cache_branch_id, 3",
        ),
    ],
    ids=str,
)
def test_a_bad_value_is_named(arguments, said):
    with pytest.raises(ValueError, match=said):
        CacheConfig(**arguments)
    if not any(isinstance(value, torch.Tensor) for value in arguments.values()):
        with pytest.raises(ValueError, match=said):
            CacheConfig.from_json(arguments)


def test_a_center_far_outside_of_any_run_is_refused_by_the_run():
    config = CacheConfig(5, uniform=False, pow=1.4, center=10**12)
    with pytest.raises(ValueError, match="center is 1000000000000; it must be one of the steps, 0 to 49"):
        config.full_steps(50)


def test_an_unknown_argument_is_named():
    with pytest.raises(TypeError, match="cache_layer_id"):
        CacheConfig(cache_layer_id=3)  # type: ignore[call-arg]


EXTENSIONS = {
    "forecast": 1.0, "forecast_order": 2.0, "reuse_guidance": True, "guidance_stop": 0.5, "refresh_interval": 2,
    "refresh_branch_id": 3, "reuse_attention": True, "skip_interval": 2, "skip_order": 2.0,
}  # fmt: skip


@given(st.sets(st.sampled_from(sorted(EXTENSIONS))), st.sets(st.sampled_from(sorted(EXTENSIONS))))
def test_an_extension_that_a_loop_lacks_is_refused_if_it_is_on(on, missing):
    assume(("refresh_interval" in on) == ("refresh_branch_id" in on))
    given: dict[str, Any] = {name: EXTENSIONS[name] for name in on}
    config = CacheConfig(**given)
    if on & missing:
        with pytest.raises(ValueError, match=rf"^({'|'.join(on & missing)}) is not available here; leave it out$"):
            config.refuse(*missing)
    else:
        config.refuse(*missing)
