"""What a run makes of a cache's description: which steps are full or refreshed, and how the U-Net is called."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import stock_unet
from unets import CacheConfig, fork_of
from unets.cache.run import CacheRun


@pytest.fixture(scope="module")
def unet():
    return fork_of(stock_unet())


@given(
    arguments=st.one_of(
        st.fixed_dictionaries({"cache_interval": st.integers(1, 12)}),
        st.sets(st.integers(0, 9)).map(lambda steps: {"cache_steps": [0, *steps]}),
    ),
    num_steps=st.integers(10, 40),
    more_calls=st.integers(0, 3),
    order=st.sampled_from([1, 2]),
    refresh_interval=st.none() | st.integers(1, 12),
)
def test_full_and_refreshed_steps_are_those_of_the_definition(
    unet, arguments, num_steps, more_calls, order, refresh_interval
):
    if refresh_interval is not None:
        arguments |= {"refresh_interval": refresh_interval, "refresh_branch_id": 4}
    num_calls = order * num_steps + more_calls
    cache = CacheRun(CacheConfig(cache_branch_id=1, **arguments), unet, num_steps, num_calls, order=order)

    in_schedule = num_steps if order == 1 else num_calls  # what PLMS makes more retrieves
    listed, interval = arguments.get("cache_steps"), arguments.get("cache_interval", 1)
    full = {i for i in range(in_schedule) if (i in listed if listed is not None else i % interval == 0)}
    if len(full) == in_schedule:
        full = set(range(num_calls))
    assert cache.full_steps == full

    refreshed, since_full = set(), 0
    for i in range(num_calls):
        since_full = 0 if i in full else since_full + 1
        if since_full == 0 or (refresh_interval is not None and since_full % refresh_interval == 0):
            refreshed.add(i)
    assert cache.refreshed_steps == refreshed


DEEP, SHALLOW, FIRST, SECOND = (torch.full((2, 1, 1, 1), float(k)) for k in range(4))
OUTPUT = SimpleNamespace(sample=DEEP, cached_feature=DEEP, shallow_feature=SHALLOW, attention=(FIRST, SECOND))


def arguments_of_steps(unet, **settings):
    """The U-Net's arguments at each of four steps, of which the first is full."""
    cache = CacheRun(CacheConfig(cache_branch_id=1, **settings), unet, 4, 4)
    for i in range(4):
        step = cache.plan(i, 2)
        yield step.unet_arguments
        cache.take(step, OUTPUT)


def cache_arguments(branch, feature, keep=None):
    return {"cache_branch_id": branch, "cached_feature": feature, "keep_branch_id": keep}


def keeps_attention(arguments):
    return {**arguments, "cached_attention": None, "keep_attention": True}


def reuses_attention(arguments):
    return {**arguments, "cached_attention": (FIRST, SECOND), "keep_attention": False}


REFRESH: dict[str, Any] = {"cache_interval": 4, "refresh_interval": 2, "refresh_branch_id": 4}


def test_nothing_is_cached_if_every_step_is_full(unet):
    nothing = cache_arguments(None, None)
    assert list(arguments_of_steps(unet)) == [nothing] * 4
    assert list(arguments_of_steps(unet, **REFRESH | {"cache_interval": 1}, reuse_attention=True)) == [nothing] * 4


def test_the_arguments_of_full_and_retrieve_steps(unet):
    full, retrieve = cache_arguments(1, None), cache_arguments(1, DEEP)
    assert list(arguments_of_steps(unet, cache_interval=3)) == [full, retrieve, retrieve, full]
    found = arguments_of_steps(unet, cache_interval=3, reuse_attention=True)
    full, retrieve = keeps_attention(full), reuses_attention(retrieve)
    assert list(found) == [full, retrieve, retrieve, full]


def test_the_arguments_of_full_refresh_and_retrieve_steps(unet):
    full, refresh, retrieve = cache_arguments(4, None, 1), cache_arguments(4, DEEP, 1), cache_arguments(1, SHALLOW)
    assert list(arguments_of_steps(unet, **REFRESH)) == [full, retrieve, refresh, retrieve]
    full, refresh, retrieve = keeps_attention(full), keeps_attention(refresh), reuses_attention(retrieve)
    assert list(arguments_of_steps(unet, **REFRESH, reuse_attention=True)) == [full, retrieve, refresh, retrieve]


def test_attention_is_kept_at_the_shallow_branch_alone(unet):
    cache = CacheRun(CacheConfig(cache_branch_id=1, **REFRESH, reuse_attention=True), unet, 4, 4)
    cached = []
    for i in range(4):
        step = cache.plan(i, 2)
        cached.append(step.cached)
        cache.take(step, OUTPUT)
    retrieved = (SHALLOW, FIRST, SECOND)
    assert cached == [None, retrieved, (DEEP,), retrieved]


def test_a_guided_step_takes_both_halves_and_one_that_reuses_guidance_the_conditional(unet):
    cache = CacheRun(CacheConfig(2, 1, reuse_guidance=True), unet, 4, 4)
    latents, both, noise = torch.zeros(1, 4), torch.tensor([[1.0], [5.0]]), torch.tensor([[7.0]])

    step = cache.plan(0, 1, guided=True)
    assert torch.equal(step.expand(latents), torch.cat([latents, latents]))
    assert step.select(both) is both and step.select(None) is None
    assert cache.take(step, SimpleNamespace(sample=both, cached_feature=DEEP)) is both

    step = cache.plan(1, 1, guided=True)
    assert step.expand(latents) is latents
    assert torch.equal(step.select(both), both[1:]) and step.select(None) is None
    assert torch.equal(step.select({"time_ids": both})["time_ids"], both[1:])
    assert torch.equal(step.unet_arguments["cached_feature"], DEEP[1:])
    # The delta of the first step is 4.
    assert torch.equal(
        cache.take(step, SimpleNamespace(sample=noise, cached_feature=None)), torch.tensor([[3.0], [7.0]])
    )


def test_a_step_without_guidance_gives_the_noise_as_it_is(unet):
    cache = CacheRun(CacheConfig(2, 1, reuse_guidance=True, guidance_stop=0.0), unet, 4, 4)
    for i in range(4):
        step = cache.plan(i, 2)
        assert step.expand(DEEP) is DEEP and step.select(DEEP) is DEEP
        assert cache.take(step, OUTPUT) is DEEP


def test_a_video_has_a_feature_for_every_frame(unet):
    cache = CacheRun(CacheConfig(3, 1), unet, 4, 4, frames=2)
    step = cache.plan(0, 1)
    cache.take(step, OUTPUT)
    assert cache.plan(1, 1).cached == (DEEP,)
    assert cache.plan(2, 2).cached is None  # of another batch size


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"cache_branch_id": 12}, "cache_branch_id is 12; this U-Net has the skip branches 0 to 11"),
        ({"refresh_interval": 2, "refresh_branch_id": 12}, "refresh_branch_id is 12; this U-Net has the skip branches"),
        ({"cache_steps": [0, 10]}, "cache_steps has 10, but the 10 steps are numbered 0 to 9"),
        ({"uniform": False, "pow": 1.4, "center": 10}, "center is 10; it must be one of the steps, 0 to 9"),
        ({"forecast": [1.0] * 9}, r"forecast has the shape \(9,\)"),
    ],
)
def test_settings_that_do_not_fit_the_run_are_named(unet, settings, said):
    with pytest.raises(ValueError, match=said):
        CacheRun(CacheConfig(**settings), unet, 10, 10)
