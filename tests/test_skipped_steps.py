"""Steps at which the U-Net is not called: which, what noise the sampler is handed, and where they are refused."""

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddpm.sampler import ddim_sample, ddpm_sample, timesteps_of
from eval.counting.layouts import MODELS
from eval.counting.macs import Macs, count_steps, unet_inputs
from eval.counting.runs import count_run, speed_up
from tests.families import FAMILIES
from tests.recorders import batch_sizes_of
from tests.tiny import stock_unet
from tests.tiny_ddpm import sample
from tests.tiny_ddpm import stock_unet as stock_ddpm
from tests.tiny_ldm import pipeline as ldm_pipeline
from tests.tiny_ldm import run as run_ldm
from unets import CacheConfig, fork_of
from unets.cache.features import polynomial_weights
from unets.cache.run import CacheRun

NAMES = ["sd", "sd-img2img", "sd-inpaint", "xl", "xl-base", "xl-img2img", "xl-refiner", "xl-inpaint-4", "xl-inpaint-9",
         "controlnet", "controlnets"]  # fmt: skip


@pytest.fixture(scope="module")
def unet():
    return fork_of(stock_unet())


# --- the polynomial --------------------------------------------------------------------------------------------------

positions = st.lists(st.integers(0, 40), min_size=1, max_size=6, unique=True).map(sorted)


@given(positions, st.integers(1, 10), st.sampled_from([0, 1, 2, 3]))
def test_a_polynomial_is_carried_on_exactly(at, further, order):
    order = min(order, len(at) - 1)
    i = at[-1] + further

    def value(x):
        return sum((k + 2) * x**k for k in range(order + 1))

    weights = polynomial_weights(at, i, order)
    found = sum(weight * value(x) for weight, x in zip(weights, at, strict=True))
    size = sum(abs(weight * value(x)) for weight, x in zip(weights, at, strict=True))
    assert abs(found - value(i)) <= 1e-12 * size  # rounding of the sum in float64
    assert weights[: len(at) - 1 - order] == [0.0] * (len(at) - 1 - order)  # of the last ones alone


@given(positions, st.integers(1, 10), st.floats(0, 3))
def test_between_two_orders_it_is_their_mixture(at, further, order):
    i, below = at[-1] + further, int(order)
    if order > len(at) - 1:
        return
    lower, upper = (polynomial_weights(at, i, k) for k in (below, below + 1))
    expected = [a + (order - below) * (b - a) for a, b in zip(lower, upper, strict=True)]
    assert np.allclose(polynomial_weights(at, i, order), expected, rtol=1e-9, atol=1e-9)  # summed in another order


# --- the run ---------------------------------------------------------------------------------------------------------

lists = st.sets(st.integers(1, 19), min_size=1).map(sorted)
kinds = st.fixed_dictionaries(
    {},
    optional={"cache_interval": st.integers(1, 12), "refresh_interval": st.integers(1, 12), "skip": st.integers(1, 12)},
)


@given(kinds, st.integers(5, 30))
def test_every_step_is_of_the_kind_that_the_intervals_say(unet, intervals, num_calls):
    n, refresh, skip = (intervals.get(name) for name in ("cache_interval", "refresh_interval", "skip"))
    config = CacheConfig(n or 1, 1, refresh_interval=refresh, refresh_branch_id=refresh and 4, skip_interval=skip)
    cache = CacheRun(config, unet, num_calls, num_calls)
    last = 0
    for i in range(num_calls):
        last = i if i % (n or 1) == 0 or (i == 1 and (skip or 1) > 1) else last
        since = i - last
        kind = "full" if since == 0 else "refresh" if refresh and since % refresh == 0 else (
            "skip" if skip and since % skip else "retrieve")  # fmt: skip
        assert kind_of(cache, i) == kind


@given(lists, lists, lists, st.integers(20, 30))
def test_every_step_is_of_the_kind_that_the_lists_say(unet, full, refresh, skip, num_calls):
    full = sorted({0, *full} - set(refresh) - set(skip))
    refresh = sorted(set(refresh) - set(skip)) or None
    config = CacheConfig(
        cache_branch_id=1, cache_steps=full, refresh_steps=refresh, refresh_branch_id=refresh and 4, skip_steps=skip
    )
    cache = CacheRun(config, unet, num_calls, num_calls)
    for i in range(num_calls):
        kind = "full" if i in full else "refresh" if i in (refresh or ()) else "skip" if i in skip else "retrieve"
        assert kind_of(cache, i) == kind


def kind_of(cache: CacheRun, i: int) -> str:
    assert not cache.full_steps & cache.skipped_steps and cache.full_steps <= cache.refreshed_steps
    if i in cache.full_steps:
        return "full"
    return "refresh" if i in cache.refreshed_steps else "skip" if i in cache.skipped_steps else "retrieve"


def run_with(unet: Any, noise_at: Any, num_calls: int = 13, **settings: Any) -> list[torch.Tensor]:
    """The noise that a sampler is handed at each step, of a U-Net that predicts `noise_at(i)` (B, …) at position i."""
    cache, handed = CacheRun(CacheConfig(cache_branch_id=1, **settings), unet, num_calls, num_calls), []
    for i in range(num_calls):
        noise = noise_at(i)
        step = cache.plan(i, len(noise))
        assert step.skips == (i in cache.skipped_steps)
        output = None if step.skips else SimpleNamespace(sample=noise, cached_feature=noise, shallow_feature=noise)
        handed.append(cache.take(step, output))
    return handed


def test_a_linear_and_a_quadratic_noise_are_carried_on_exactly(unet):
    start, slope, bend = (torch.full((2, 4), float(k)) for k in (1, 2, 3))

    def noise_at(i):
        return start + i * slope + i * i * bend  # whole numbers, so that float32 adds them without rounding

    handed = run_with(unet, noise_at, cache_steps=[0, 2, 4, 8], skip_steps=[5, 6, 7, 9, 10, 11, 12], skip_order=2)
    for i, noise in enumerate(handed):
        # Thirds in the weights are rounded, and multiplied by noises of up to 469.
        assert torch.allclose(noise, noise_at(i), rtol=1e-6, atol=1e-3), i
    bend.zero_()
    for i, noise in enumerate(run_with(unet, noise_at, cache_steps=[0, 1, 4], skip_interval=20)):
        assert torch.allclose(noise, noise_at(i), rtol=1e-6, atol=1e-4)


def test_order_0_and_a_single_noise_are_copied(unet):
    noises = [torch.full((2, 4), float(i * i)) for i in range(13)]
    handed = run_with(unet, noises.__getitem__, cache_interval=4, skip_interval=4, skip_order=0)
    assert all(noise is noises[i if i < 2 else max(1, i - i % 4)] for i, noise in enumerate(handed))
    handed = run_with(unet, noises.__getitem__, cache_interval=13, skip_steps=[1, 2], skip_order=3)
    assert all(noise is noises[0] for noise in handed[:3])


def test_retrieve_and_refresh_steps_are_gone_by_as_well(unet):
    noises = [torch.full((2, 4), float(i)) for i in range(13)]
    handed = run_with(unet, noises.__getitem__, cache_interval=12, refresh_interval=4, refresh_branch_id=4,
                      skip_steps=[3, 5, 6])  # fmt: skip
    assert all(torch.equal(noise, noises[i]) for i, noise in enumerate(handed))  # of 1 and 2, and of 2 and 4


def test_where_nothing_retrieves_no_feature_is_kept(unet):
    for skip, branch in ((4, None), (9, None), (1, 1), (2, 1)):
        cache = CacheRun(CacheConfig(4, 1, skip_interval=skip), unet, 9, 9)
        retrieves = cache.full_steps | cache.skipped_steps != set(range(9))
        assert cache.plan(0, 2).branch == branch and retrieves == (branch is not None)


def test_with_guidance_both_halves_are_carried_on(unet):
    cache = CacheRun(CacheConfig(2, 1, skip_interval=2, reuse_guidance=True), unet, 8, 8)
    for i in range(8):
        step = cache.plan(i, 1, guided=True)
        noise = torch.tensor([[1.0 * i], [-3.0 * i]])
        output = None if step.skips else SimpleNamespace(sample=noise, cached_feature=noise)
        handed = cache.take(step, output)
        assert torch.equal(handed, noise)


def test_where_guidance_was_switched_off_a_step_is_computed_after_all(unet):
    cache = CacheRun(CacheConfig(2, 1, skip_interval=2), unet, 8, 8)
    both = torch.zeros(2, 4)
    for i in range(3):
        step = cache.plan(i, 1, guided=True)
        cache.take(step, None if step.skips else SimpleNamespace(sample=both, cached_feature=both))
    step = cache.plan(3, 1)
    assert not step.skips and step.cached is None  # nor is there a feature of as many rows


# --- the loops -------------------------------------------------------------------------------------------------------


@contextmanager
def skipping(unet: Any, skipped: set[int], order: int):
    """A stock U-Net whose output is replaced, at the skipped positions, by the polynomial through the computed ones."""
    computed: dict[int, torch.Tensor] = {}
    state = SimpleNamespace(position=-1)

    def replace(_, __, output):
        state.position += 1
        i = state.position
        if i not in skipped:
            computed[i] = output[0]
            return None
        at = list(computed)
        weights = polynomial_weights(at, i, order)
        near = list(zip(weights, at, strict=True))[-order - 1 :]
        last = computed[at[-1]]
        noise = last if len(near) == 1 else torch.lerp(last, computed[near[-2][1]], near[-2][0])
        for weight, k in near[:-2]:
            noise = noise + weight * (computed[k] - last)
        return (noise,)

    hook = unet.register_forward_hook(replace)
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.parametrize(("name", "scheduler"), [*((name, "ddim") for name in NAMES), ("sd", "plms")])
def test_every_fork_is_a_stock_pipeline_into_which_hooks_put_the_line(name, scheduler):
    family = FAMILIES[name]
    stock, fork = family.pair(scheduler)
    with skipping(stock.unet, {i for i in range(2, 30) if i % 3}, 1):
        expected = family.run(stock, 10)
    calls = batch_sizes_of(fork)
    assert np.array_equal(family.run(fork, 10, cache_interval=3, skip_interval=3), expected)
    assert 0 < len(calls) <= 5
    assert not np.array_equal(family.run(fork, 10), expected)


@pytest.mark.parametrize("scheduler", ["dpm++", "unipc", "euler"])
def test_every_sampler_is_handed_what_a_computed_step_would_hand_it(scheduler):
    stock, fork = FAMILIES["sd"].pair(scheduler)
    with skipping(stock.unet, {i for i in range(2, 30) if i % 3}, 2):
        expected = FAMILIES["sd"].run(stock, 10)
    found = FAMILIES["sd"].run(fork, 10, cache_interval=3, skip_interval=3, skip_order=2)
    assert np.abs(found - expected).max() < 1e-5  # added in place, which may round once less


def test_ldm_and_ddpm_skip():
    pipe = ldm_pipeline()
    calls = batch_sizes_of(pipe)
    images = run_ldm(pipe, cache_interval=5, skip_interval=2, skip_order=2)
    assert np.isfinite(images).all() and len(calls) == 6  # 0, 1, 3, 5, 7 and 9
    stock = stock_ddpm()
    x, timesteps = sample(), timesteps_of(10, "quad")
    with skipping(stock, {i for i in range(2, 10) if i % 3}, 1):

        class Stock:
            dtype = torch.float32

            def check_branch(self, _: int) -> None: ...
            def __call__(self, x: Any, t: Any, **_: Any) -> Any:
                (noise,) = stock(x, t, return_dict=False)
                return SimpleNamespace(sample=noise)

        expected = ddim_sample(Stock(), x, timesteps)
    assert torch.equal(ddim_sample(fork_of(stock), x, timesteps, cache_interval=3, skip_interval=3), expected)


def test_off_is_as_if_it_were_not_there():
    _, fork = FAMILIES["sd"].pair("plms")
    plain = FAMILIES["sd"].run(fork, 6, cache_interval=3)
    assert np.array_equal(FAMILIES["sd"].run(fork, 6, cache_interval=3, skip_interval=1), plain)


# --- where it is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheduler", "more", "words"),
    [
        ("euler-a", {}, "not EulerAncestralDiscreteScheduler"),
        ("lcm", {}, "not LCMScheduler"),
        ("heun", {}, "not HeunDiscreteScheduler"),
        ("dpm++-sde", {}, "not DPMSolverMultistepScheduler with added noise"),
        ("ddim", {"eta": 0.5}, "not DDIMScheduler with added noise"),
    ],
)
def test_samplers_with_noise_of_their_own_are_refused(scheduler, more, words):
    _, fork = FAMILIES["sd"].pair(scheduler)
    for skip in ({"skip_interval": 2}, {"skip_steps": [1, 3]}):
        with pytest.raises(ValueError, match=f"skip_interval and skip_steps need one of PNDMScheduler.*{words}"):
            FAMILIES["sd"].run(fork, 4, **skip, **more)


def test_loops_that_it_was_not_tried_in_refuse_it():
    with pytest.raises(ValueError, match="skip_interval is not available here; leave it out"):
        FAMILIES["svd"].run(FAMILIES["svd"].pair("euler")[1], 4, skip_interval=2)
    unet, x = fork_of(stock_ddpm()), sample()
    generators = [torch.Generator() for _ in x]
    with pytest.raises(ValueError, match="skip_steps is not available here"):
        ddpm_sample(unet, x, [0, 1, 2], generators=generators, skip_steps=[1])
    with pytest.raises(ValueError, match="skip_interval is not available here"):
        ddim_sample(unet, x, [0, 1, 2], eta=1.0, generators=generators, skip_interval=2)


def test_a_sampler_of_second_order_is_refused(unet):
    with pytest.raises(ValueError, match="need a sampler that calls the U-Net once a step"):
        CacheRun(CacheConfig(2, skip_interval=2), unet, 10, 20, order=2)


# --- what it costs ---------------------------------------------------------------------------------------------------


def test_macs_of_a_run_are_those_of_its_steps():
    model = MODELS["ddpm-cifar10"]
    fork = model.on_meta()
    inputs = unet_inputs(fork, 32, 32)
    full, retrieve = count_steps(fork, inputs, 2)
    run = count_run(fork, inputs, CacheConfig(4, 2, skip_interval=2), 10)
    nothing = Macs(0, 0)
    assert run == [full, full, nothing, retrieve, full, nothing, retrieve, nothing, full, nothing]
    assert speed_up(run) == 10 * full.with_attention / (4 * full.with_attention + 2 * retrieve.with_attention)


def test_macs_of_a_guided_run_halve_where_one_half_is_run():
    model = MODELS["ldm4"]
    fork = model.on_meta()
    inputs = unet_inputs(fork, 64, 64, batch=2, tokens=1)
    plain = count_run(fork, inputs, CacheConfig(3, 0), 4, guided=True)
    halved = count_run(fork, inputs, CacheConfig(3, 0, reuse_guidance=True, forecast=1.0), 4, guided=True)
    assert [a == b for a, b in zip(plain, halved, strict=True)] == [True, False, False, True]
    assert halved[1].with_attention * 2 == plain[1].with_attention


def test_a_scheduler_that_is_new_to_us_is_refused_by_name():
    _, fork = FAMILIES["sd"].pair()
    fork.scheduler = diffusers.DEISMultistepScheduler.from_config(fork.scheduler.config)
    with pytest.raises(ValueError, match="not DEISMultistepScheduler"):
        FAMILIES["sd"].run(fork, 4, skip_interval=2)
