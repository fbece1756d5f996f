"""Samplers whose step is one sum: the weights, the pictures, and where they stay as they are."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter

from pipelines import loading
from pipelines.fused_steps import can_be_fused, fuse_steps, step_weights, weighted_sum
from pipelines.loading import new_scheduler, place_pipeline
from tests.absent_device import COPIED, absent_device
from tests.two_levels import small

SAMPLERS = ["plms", "ddim", "dpm++", "unipc", "euler"]
CACHE: dict[str, Any] = {"cache_interval": 3, "cache_branch_id": 1}


def scheduler_of(name: str, **changes: Any) -> Any:
    own = small("sd").parts()["scheduler"].config
    return new_scheduler(name, {**own, **changes})


def test_ddims_weights_are_its_formula():
    scheduler = scheduler_of("ddim", prediction_type="epsilon")
    scheduler.set_timesteps(10)
    weights, latents_ago, noises_ago = step_weights(scheduler, scheduler.timesteps)
    assert (latents_ago, noises_ago) == ([0], [0])
    alphas = [*scheduler.alphas_cumprod[scheduler.timesteps].tolist(), float(scheduler.final_alpha_cumprod)]
    for (x, noise), now, after in zip(weights.tolist(), alphas, alphas[1:], strict=False):
        assert x == pytest.approx(math.sqrt(after / now), rel=1e-5)  # float32 alphas
        assert noise == pytest.approx(math.sqrt(1 - after) - math.sqrt(after * (1 - now) / now), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_asking_for_the_weights_leaves_the_scheduler_as_it_is(sampler):
    scheduler = scheduler_of(sampler)
    scheduler.set_timesteps(6)
    before = copy.deepcopy(vars(scheduler))
    step_weights(scheduler, scheduler.timesteps)
    assert before.keys() == vars(scheduler).keys()
    assert repr(before) == repr(vars(scheduler))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", ["sd", "sd-img2img", "xl-base", "xl-inpaint-4", "t2v-zero"])
def test_pictures_are_those_of_the_schedulers_own_steps(name, sampler):
    if (name, sampler) == ("t2v-zero", "euler"):
        pytest.skip("Text2Video-Zero does not take it")
    _, fork = small(name).pair(sampler)
    expected = [small(name).run(fork, steps, **CACHE) for steps in (9, 8)]
    assert can_be_fused(fork.scheduler)
    fuse_steps(fork.scheduler, weighted_sum)
    for steps, images in zip((9, 8), expected, strict=True):  # a second run begins anew
        found = small(name).run(fork, steps, **CACHE)
        assert np.abs(found - images).max() < 2e-5  # the same sums in another order, in float32


def test_videos_too():
    _, fork = small("svd").pair("euler")
    expected = small("svd").run(fork, 6, **CACHE)
    fuse_steps(fork.scheduler, weighted_sum)
    assert np.abs(small("svd").run(fork, 6, **CACHE) - expected).max() < 2e-4  # σ begins at 700


def test_a_step_with_noise_is_the_schedulers_own():
    _, fork = small("sd").pair("ddim")
    expected = small("sd").run(fork, 5, eta=0.5)
    fuse_steps(fork.scheduler, weighted_sum)
    assert np.array_equal(small("sd").run(fork, 5, eta=0.5), expected)


@pytest.mark.parametrize(
    ("sampler", "changes"),
    [("heun", {}), ("euler-a", {}), ("lcm", {}), ("dpm++-sde", {}), ("dpm++", {"thresholding": True})],
)
def test_steps_that_are_not_sums_are_unchanged(sampler, changes, monkeypatch):
    scheduler = scheduler_of(sampler, **changes)
    assert not can_be_fused(scheduler)
    monkeypatch.setattr(loading, "compile_forward", lambda *_, **__: None)
    _, fork = small("sd").pair()
    fork.scheduler, own = scheduler, type(scheduler)
    place_pipeline(fork, torch.device("cpu"), channels_last=False, compiled=True, cpu_offload=False)
    assert type(fork.scheduler) is own


def test_a_compiled_pipeline_has_it_in_one_graph_and_is_saved_as_ever(monkeypatch, tmp_path):
    counter = CompileCounter()  # type: ignore[no-untyped-call]
    compile_with = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **more: compile_with(f, backend=counter, **more))
    monkeypatch.setattr(loading, "compile_forward", lambda *_, **__: None)
    _, fork = small("sd").pair("unipc")
    expected = small("sd").run(fork, 8, **CACHE)
    own = type(fork.scheduler)
    place_pipeline(fork, torch.device("cpu"), channels_last=False, compiled=True, cpu_offload=False)
    assert isinstance(fork.scheduler, own) and type(fork.scheduler) is not own
    assert np.abs(small("sd").run(fork, 8, **CACHE) - expected).max() < 2e-5  # summed in another order
    assert counter.frame_count == 1
    fork.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["scheduler"] == ["diffusers", own.__name__]
    assert json.loads((tmp_path / "scheduler" / "scheduler_config.json").read_text())["_class_name"] == own.__name__
    assert type(fork.scheduler).from_config(fork.scheduler.config)._run is None


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_step_waits_for_the_device(sampler):
    """UniPC's own read from it six times a step, and Euler's copies noise to it that it doesn't need."""
    _, fork = small("sd").pair(sampler)
    fuse_steps(fork.scheduler, weighted_sum)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))

    def run() -> torch.Tensor:
        return fork(
            "a large red ring", latents=noise, num_inference_steps=6, output_type="latent", **CACHE
        ).images.cpu()

    expected = run()
    with absent_device() as watch:
        fork.to("cuda")
        watch.follow(fork.unet)
        assert torch.equal(run(), expected)
        # The first step's weights are copied to the device.
        assert watch.steps[0] == [COPIED] and not any(watch.steps[1:])
