"""Two depths of the cache, and attention that is retrieved: the forks against hooks on stock models."""

import functools
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddpm.sampler import ddim_sample, timesteps_of
from tests.families import FAMILIES
from tests.tiny import inputs
from tests.tiny_ddpm import Uncached, sample, stock_unet
from tests.tiny_ldm import pipeline as ldm_pipeline
from tests.tiny_ldm import run as run_ldm
from unets import CacheConfig, fork_of
from unets.cache.run import CacheRun

NAMES = ["sd", "sd-img2img", "sd-inpaint", "xl", "xl-refiner", "xl-inpaint-9", "svd", "controlnet"]


def layers_of(unet):
    """Attentions of d_1, d_2, …, and resnets and attentions of u_0, u_1, …, None where there is none."""
    down: list[Any] = []
    for block in unet.down_blocks:
        down += list(getattr(block, "attentions", [None] * len(block.resnets)))
        down += [None] * len(block.downsamplers or ())
    resnets = [resnet for block in unet.up_blocks for resnet in block.resnets][::-1]
    up = [a for block in unet.up_blocks for a in getattr(block, "attentions", [None] * len(block.resnets))][::-1]
    return down, resnets, up


@contextmanager
def hooked(unet, full, refreshed=(), m=0, deeper=None, attention=False):
    """A stock U-Net that computes everything, and into which copies of what earlier calls computed are put."""
    down, resnets, up = layers_of(unet)
    kept: dict[Any, torch.Tensor] = {}
    widths: dict[int, int] = {}
    state = SimpleNamespace(position=-1)
    hooks = [unet.register_forward_pre_hook(lambda *_: setattr(state, "position", state.position + 1))]

    def kind():
        return "full" if state.position in full else "refresh" if state.position in refreshed else "retrieve"

    def at_branch(k, retrieves):
        def below(_, __, output):
            widths[k] = output.shape[1]

        def enter(_, args):
            h, skip = args[0][:, : widths[k]], args[0][:, widths[k] :]
            if kind() == retrieves:
                return (torch.cat([kept[k], skip], dim=1), *args[1:])
            if kind() == "full" or retrieves == "retrieve":
                kept[k] = h.clone()
            return None

        hooks.append(resnets[k + 1].register_forward_hook(below))
        hooks.append(resnets[k].register_forward_pre_hook(enter))

    def add(layer):
        def leave(_, args, output):
            if kind() == "retrieve":
                return (args[0] + kept[layer],)
            kept[layer] = output[0] - args[0]
            return None

        hooks.append(layer.register_forward_hook(leave))

    at_branch(m, "retrieve")
    if deeper is not None:
        at_branch(deeper, "refresh")
    if attention:
        for layer in (*down[:m], *up[: m + 1]):
            if layer is not None:
                add(layer)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@functools.cache
def run_with(name, **settings):
    """A run of ten steps."""
    _, fork = FAMILIES[name].pair("euler" if name == "svd" else "ddim")
    return FAMILIES[name].run(fork, 10, **settings)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("m", "deeper", "attention"), [(0, 3, False), (3, None, True), (3, 5, True)])
def test_every_fork_is_a_stock_pipeline_into_which_hooks_put_what_was_kept(name, m, deeper, attention):
    family = FAMILIES[name]
    stock, fork = family.pair("euler" if name == "svd" else "ddim")
    cache: dict[str, Any] = {"cache_interval": 6, "cache_branch_id": m, "reuse_attention": attention}
    if deeper is not None:
        cache |= {"refresh_interval": 2, "refresh_branch_id": deeper}
    refreshed = range(0, 100, 2) if deeper is not None else ()
    with hooked(stock.unet, range(0, 100, 6), refreshed, m, deeper, attention):
        expected = family.run(stock, 10)
    assert np.array_equal(family.run(fork, 10, **cache), expected)
    for other in (run_with(name, cache_interval=6, cache_branch_id=m), run_with(name)):
        assert not np.array_equal(other, expected)


@pytest.mark.parametrize("name", NAMES)
def test_off_is_as_before_and_with_every_step_full_it_is_the_stock_pipeline(name):
    family = FAMILIES[name]
    stock, fork = family.pair("euler" if name == "svd" else "ddim")
    beyond = {"refresh_interval": 2, "refresh_branch_id": 5, "reuse_attention": True}
    assert np.array_equal(family.run(fork, 4, cache_branch_id=3, **beyond), family.run(stock, 4))


@pytest.mark.parametrize(("m", "deeper"), [(0, 2), (2, 7)])
def test_ddpm_has_two_depths(m, deeper):
    stock = stock_unet("cifar10")
    x, timesteps = sample("cifar10"), timesteps_of(10, "quad")
    with hooked(stock, [0, 6], [0, 2, 4, 6, 8], m, deeper):
        expected = ddim_sample(Uncached(stock), x, timesteps)
    cache: dict[str, Any] = {"cache_interval": 6, "cache_branch_id": m}
    refresh = {"refresh_interval": 2, "refresh_branch_id": deeper}
    found = ddim_sample(fork_of(stock), x, timesteps, **cache, **refresh)
    assert torch.equal(found, expected)
    assert not torch.equal(found, ddim_sample(fork_of(stock), x, timesteps, **cache))


def test_ldm_has_both_beside_what_else_there_is():
    pipe = ldm_pipeline()
    plain = run_ldm(pipe, cache_interval=6, cache_branch_id=3, output_type="latent")
    seen = []

    def note(_, args, kwargs):
        given = [kwargs[name] is not None for name in ("cached_feature", "cached_attention")]
        seen.append((len(args[0]), kwargs["cache_branch_id"], *given))

    pipe.unet.register_forward_pre_hook(note, with_kwargs=True)
    beyond: dict[str, Any] = {"refresh_interval": 2, "refresh_branch_id": 5, "reuse_attention": True}
    found = run_ldm(
        pipe, cache_interval=6, cache_branch_id=3, output_type="latent", reuse_guidance=True, forecast=1.0, **beyond
    )
    full, retrieve, refresh = (4, 5, False, False), (2, 3, True, True), (4, 5, True, False)
    assert seen == [full, retrieve, refresh, retrieve, refresh, retrieve, full, retrieve, refresh, retrieve]
    assert found.isfinite().all() and not torch.equal(found, plain)


def run_of(full, num_steps, **settings):
    """The cache of a run on a small model, whose branch is 1."""
    config = CacheConfig(cache_branch_id=1, cache_steps=full, **settings)
    return CacheRun(config, fork_of(stock_unet("cifar10")), num_steps, num_steps)


def output_of(value, batch_size=2):
    feature = torch.full((batch_size, 1, 1, 1), float(value))
    return SimpleNamespace(sample=feature, cached_feature=feature, shallow_feature=feature)


@given(
    st.sets(st.integers(1, 39), max_size=38).map(lambda steps: sorted({0, *steps})),
    st.integers(1, 12),
    st.booleans(),
)
def test_the_kind_of_every_step(full, interval, forecast):
    cache = run_of(full, 40, forecast=float(forecast), refresh_interval=interval, refresh_branch_id=4)
    made = {1: -1, 4: -1}  # where the last step was that kept at each branch
    for i in range(40):
        step = cache.plan(i, 2)
        last_full = max(k for k in full if k <= i)
        if i == last_full:
            assert (step.branch, step.cached, step.keep_branch) == (4, None, 1)
        elif (i - last_full) % interval == 0:
            assert (step.branch, step.keep_branch) == (4, 1)
        else:
            assert (step.branch, step.keep_branch) == (1, None)
        assert step.retrieve_branch == (None if i == last_full else step.branch)
        if not forecast and step.cached is not None:
            assert step.branch is not None and step.cached[0][0, 0, 0, 0] == made[step.branch]
        cache.take(step, output_of(i))
        made[1] = i if step.keep_branch == 1 else made[1]
        made[4] = i if step.cached is None else made[4]


def test_a_guidance_that_ends_in_the_middle_makes_a_full_step():
    cache = run_of([0], 8, refresh_interval=2, refresh_branch_id=4)
    for i, batch_size in enumerate([4, 4, 4, 2, 2, 2]):
        step = cache.plan(i, batch_size)
        assert (step.cached is None) == (i in (0, 3))
        cache.take(step, output_of(i, batch_size))


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"refresh_interval": 3}, "belong together"), ({"refresh_branch_id": 3}, "belong together"),
     ({"refresh_interval": 0, "refresh_branch_id": 3}, "refresh_interval is 0"),
     ({"refresh_interval": 3, "refresh_branch_id": 1}, "refresh_branch_id is 1; it must be above cache_branch_id, 1"),
     ({"refresh_interval": 3, "refresh_branch_id": 99}, "refresh_branch_id is 99; this U-Net has the skip branches")],
)  # fmt: skip
def test_settings_out_of_range_are_named(settings, words):
    _, fork = FAMILIES["sd"].pair("ddim")
    with pytest.raises(ValueError, match=words):
        FAMILIES["sd"].run(fork, 4, cache_interval=2, cache_branch_id=1, **settings)


def test_where_there_is_no_attention_reusing_it_is_refused():
    fork = fork_of(stock_unet("cifar10"))
    config = CacheConfig(cache_interval=2, cache_branch_id=1, reuse_attention=True)
    for refused in (lambda: CacheRun(config, fork, 4, 4), lambda: fork.shallow_attention(1, None, True)):
        with pytest.raises(ValueError, match="there is no attention to cache in the layers that branch 1 runs"):
            refused()


def test_attention_of_another_branch_is_refused():
    _, fork = FAMILIES["sd"].pair("ddim")
    h = torch.zeros(1)
    with pytest.raises(ValueError, match="cached_attention is of 1 layers; branch 1 has 3"):
        fork.unet(**inputs("sd21"), cache_branch_id=1, cached_feature=h, cached_attention=(h,))
