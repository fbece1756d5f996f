"""What a retrieve step gets from the cached features, and the loops that use it."""

import weakref
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddpm.sampler import ddim_sample, timesteps_of
from tests.families import FAMILIES
from tests.tiny_ddpm import Uncached, sample, stock_unet
from tests.tiny_ldm import pipeline as ldm_pipeline
from tests.tiny_ldm import run as run_ldm
from unets import fork_of
from unets.cache.features import FeatureCache
from unets.cache.schedule import full_steps

T = 40


def feature(seed=0, batch_size=2, channels=3):
    return torch.randn(batch_size, channels, 2, 2, generator=torch.Generator().manual_seed(seed))


def cache_of(features, **settings):
    """A run of T positions that has cached `features`, by position."""
    cache = FeatureCache(features, T, **settings)
    for i, value in features.items():
        assert cache.get(i, len(value)) is None
        cache.put(i, (value,))
    return cache


def feature_at(cache, i, batch_size=2, **settings):
    """What the step at position i gets: only the deep feature."""
    (value,) = cache.get(i, batch_size, **settings)
    return value


@given(st.lists(st.integers(0, T - 1), min_size=3, max_size=3, unique=True).map(sorted))
def test_features_on_a_line_are_forecast_exactly(positions):
    before, last, i = positions
    start, slope = feature(0), feature(1)
    cache = cache_of({k: start + k * slope for k in (before, last)}, forecast=1.0)
    # float32's rounding of two features, whose difference is multiplied by the length of the forecast.
    tolerance = 1e-6 * T * (1 + (i - last) / (last - before))
    assert torch.allclose(feature_at(cache, i), start + i * slope, rtol=0, atol=tolerance)


@given(st.floats(-2, 2, width=16), st.integers(11, T - 1))
def test_it_is_the_formula(g, i):
    a, b = feature(0), feature(1)
    expected = b.double() + g * (b - a).double() * (i - 10) / (10 - 4)
    # Float32 against float64, over at most five intervals.
    assert torch.allclose(feature_at(cache_of({4: a, 10: b}, forecast=g), i).double(), expected, atol=1e-4)


def test_0_copies_the_very_tensor_and_holds_one():
    features = {0: feature(0), 5: feature(1)}
    cache = cache_of(features)
    assert feature_at(cache, 7) is features[5]
    first, second = map(weakref.ref, features.values())
    features.clear()
    assert first() is None and second() is not None
    assert cache.get(0, 2) is None and second() is None  # the full step's memory is free


def test_before_a_second_full_step_there_is_nothing_to_forecast_from():
    a = feature()
    assert feature_at(cache_of({0: a}, forecast=1.0), 3) is a


def test_g_for_each_position_and_channel():
    a, b = feature(0), feature(1)
    by_position = [0.0] * T
    by_position[12] = 0.5
    cache = cache_of({0: a, 10: b}, forecast=by_position)
    assert feature_at(cache, 11) is b
    assert torch.equal(feature_at(cache, 12), feature_at(cache_of({0: a, 10: b}, forecast=0.5), 12))
    table = torch.rand(T, 3, generator=torch.Generator().manual_seed(2))
    found = feature_at(cache_of({0: a, 10: b}, forecast=table), 12)
    for c in range(3):
        alone = feature_at(cache_of({0: a, 10: b}, forecast=table[:, c]), 12)
        assert torch.equal(found[:, c], alone[:, c])


def test_what_attention_adds_has_the_channels_mean_of_g():
    (a, b), (c, d) = ((feature(seed), feature(seed + 1)) for seed in (0, 2))
    table = torch.rand(T, 3, generator=torch.Generator().manual_seed(2))
    cache = FeatureCache([0, 10], T, table)
    cache.put(0, (a, c))
    cache.put(10, (b, d))
    cached = cache.get(12, 2)
    assert cached is not None
    deep, added = cached
    assert torch.equal(deep, feature_at(cache_of({0: a, 10: b}, forecast=table), 12))
    assert torch.equal(added, feature_at(cache_of({0: c, 10: d}, forecast=table.mean(1)), 12))


def test_a_half_float_feature_is_forecast_in_float32():
    a, b = feature(0).bfloat16(), feature(1).bfloat16()
    found = feature_at(cache_of({0: a, 10: b}, forecast=1.0), 13)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, feature_at(cache_of({0: a.float(), 10: b.float()}, forecast=1.0), 13).bfloat16())


@pytest.mark.parametrize("forecast", [0.0, 1.0])
def test_of_both_halves_the_conditional_one_can_be_asked_for(forecast):
    a, b = feature(0, batch_size=4), feature(1, batch_size=4)
    cache = cache_of({0: a, 10: b}, forecast=forecast)
    assert torch.equal(feature_at(cache, 13, conditional_only=True), feature_at(cache, 13, batch_size=4)[2:])


def test_another_batch_size_makes_a_full_step_and_forgets():
    cache = cache_of({0: feature(0, batch_size=4), 10: feature(1, batch_size=4)}, forecast=1.0)
    assert cache.get(11, 2) is None
    half = feature(2, batch_size=2)
    cache.put(11, (half,))
    assert feature_at(cache, 12) is half


@pytest.mark.parametrize(
    ("forecast", "words"),
    [([1.0] * 3, r"shape \(3,\)"), (torch.zeros(T, 2, 2), "shape"), (float("nan"), "not finite"),
     (torch.full((T, 2), float("inf")), "not finite")],
)  # fmt: skip
def test_a_wrong_table_is_named(forecast, words):
    with pytest.raises(ValueError, match=f"forecast has .*{words}"):
        FeatureCache([0], T, forecast)


def test_a_table_of_another_number_of_channels_is_named():
    with pytest.raises(ValueError, match="5 columns; the cached feature has 3 channels"):
        cache_of({0: feature(0), 10: feature(1)}, forecast=torch.ones(T, 5)).get(11, 2)


@pytest.mark.parametrize("m", [0, 5])
@pytest.mark.parametrize("g", [0.5, 1.0])
def test_ddim_with_a_forecast_is_a_stock_model_into_which_hooks_put_the_forecast(m, g):
    stock = stock_unet("cifar10")
    x, timesteps, full = sample("cifar10"), timesteps_of(10, "quad"), full_steps(10, 3)
    resnet = [resnet for block in stock.up_blocks for resnet in block.resnets][::-1][m]
    width = fork_of(stock)(x, 1, cache_branch_id=m).cached_feature.shape[1]
    seen: dict[int, torch.Tensor] = {}
    uncached = Uncached(stock)

    def hook(_, args):
        position = uncached.position
        if position in full:
            seen[position] = args[0][:, :width].clone()
            return None
        last = max(seen)
        value = seen[last]
        if last > 0:  # N = 3: the full step before is three positions earlier
            value = value + g * ((position - last) / 3) * (value - seen[last - 3])
        return (torch.cat([value, args[0][:, width:]], dim=1), *args[1:])

    handle = resnet.register_forward_pre_hook(hook)
    expected = ddim_sample(uncached, x, timesteps)
    handle.remove()
    found = ddim_sample(fork_of(stock), x, timesteps, cache_branch_id=m, cache_interval=3, forecast=g)
    # g · (i − k) / (k − k') is rounded to float32 in one and not in the other.
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    assert not torch.equal(found, ddim_sample(fork_of(stock), x, timesteps, cache_branch_id=m, cache_interval=3))


@pytest.mark.parametrize(
    "name", ["sd", "sd-img2img", "sd-inpaint", "xl", "xl-refiner", "xl-inpaint-9", "svd", "controlnet"]
)
def test_every_fork_forecasts_and_0_is_the_copy(name):
    _, fork = FAMILIES[name].pair("euler" if name == "svd" else "plms")
    run: dict[str, Any] = {"cache_interval": 2, "cache_branch_id": 1, "steps": 6}
    plain = FAMILIES[name].run(fork, **run)
    assert np.array_equal(FAMILIES[name].run(fork, **run, forecast=0.0), plain)
    forecast = FAMILIES[name].run(fork, **run, forecast=1.0)
    assert np.isfinite(forecast).all() and not np.array_equal(forecast, plain)


def test_ldm_forecasts_and_0_is_the_copy():
    pipe = ldm_pipeline()
    plain = run_ldm(pipe, cache_interval=3, output_type="latent")
    assert torch.equal(run_ldm(pipe, cache_interval=3, forecast=0.0, output_type="latent"), plain)
    assert not torch.equal(run_ldm(pipe, cache_interval=3, forecast=[1.0] * 10, output_type="latent"), plain)
