"""Sampling of second and third order, against DDIM and against noises that it integrates exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st

from ddpm import sample as ddpm_command
from ddpm.sampler import ab_sample, alphas_cumprod, ddim_sample, timesteps_of
from ldm import sample as ldm_command
from ldm.checkpoint import new_scheduler
from pipelines.adams_bashforth import AdamsBashforthScheduler, adams_bashforth_weights
from tests.tiny_ddpm import sample, stock_unet
from tests.tiny_ldm import pipeline as ldm_pipeline
from tests.tiny_ldm import run as run_ldm
from unets import fork_of

SIGMAS = np.sqrt(1 / np.linspace(1, 0.01, 1001) - 1)  # of 1000 timesteps, and 0 before them
falling = st.sets(st.integers(0, 999), min_size=3, max_size=12).map(lambda steps: sorted(steps, reverse=True))


@given(st.integers(3, 12), st.integers(1, 80), st.sampled_from([1, 2, 3]))
def test_a_polynomial_noise_is_integrated_exactly(count, apart, order):
    timesteps = list(range(apart * count - 1, -1, -apart))  # the last step ends at −1, as far as the others

    def noise(t):
        return sum((k + 1.0) * (t / 1000) ** k for k in range(order))

    for i, weights in enumerate(adams_bashforth_weights(timesteps, SIGMAS, order)):
        assert len(weights) == min(order, i + 1)
        if i + 1 < order:
            continue
        grid = np.arange(timesteps[i], [*timesteps[1:], -1][i] - 1, -1)
        exact = np.trapezoid(noise(grid), SIGMAS[grid + 1])
        noises = [noise(t) for t in timesteps[i - order + 1 : i + 1][::-1]]
        size = sum(abs(w * n) for w, n in zip(weights, noises, strict=True))
        assert abs(np.dot(weights, noises) - exact) <= 1e-10 * size  # rounding in float64


@given(falling)
def test_the_first_order_is_the_whole_step(timesteps):
    weights = adams_bashforth_weights(timesteps, SIGMAS, 1)
    ends = SIGMAS[np.array([*timesteps[1:], -1]) + 1]
    assert np.allclose(np.ravel(weights), ends - SIGMAS[np.array(timesteps) + 1], rtol=1e-9)


def test_a_timestep_that_repeats_takes_no_step_and_counts_once():
    once = adams_bashforth_weights([30, 20, 10, 0], SIGMAS, 3)
    twice = adams_bashforth_weights([30, 20, 20, 10, 0], SIGMAS, 3)
    assert twice[1] == [0.0, 0.0]
    assert [twice[0], *twice[2:]] == once


def test_ddpm_s_first_order_is_ddim_and_higher_ones_are_not():
    unet, x, timesteps = fork_of(stock_unet()), sample(), timesteps_of(50, "quad")
    assert len(set(timesteps)) < len(timesteps)  # the small ones repeat
    ddim = ddim_sample(unet, x, timesteps)
    # The same sum in another order, in float32.
    assert torch.allclose(ab_sample(unet, x, timesteps, order=1), ddim, rtol=0, atol=1e-4)
    second, third = (ab_sample(unet, x, timesteps, order=order) for order in (2, 3))
    assert not torch.allclose(second, ddim, atol=1e-3) and not torch.allclose(third, second, atol=1e-4)


def test_inputs_may_come_from_a_cache():
    unet, x, timesteps = fork_of(stock_unet()), sample(), timesteps_of(10, "uniform")
    plain = ab_sample(unet, x, timesteps, order=2)
    assert torch.equal(ab_sample(unet, x, timesteps, order=2, cache_branch_id=2), plain)
    cached = ab_sample(unet, x, timesteps, order=2, cache_interval=3, cache_branch_id=2, skip_interval=2)
    assert cached.isfinite().all() and not torch.equal(cached, plain)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_scheduler_is_ddpm_s_sampler(order):
    """On the same timesteps, alphas and noises: of the model of DDPM, whose run ends at α = 1."""
    alphas = alphas_cumprod()
    scheduler = AdamsBashforthScheduler(trained_betas=(1 - alphas[1:] / alphas[:-1]).numpy(), steps_offset=0,
                                        clip_sample=False)  # fmt: skip
    scheduler.solver_order = order
    scheduler.set_timesteps(10)
    timesteps = timesteps_of(10, "uniform")
    assert scheduler.timesteps.tolist() == timesteps[::-1]
    unet, x = fork_of(stock_unet()), sample()
    expected = ab_sample(unet, x, timesteps, order=order)
    with torch.no_grad():
        for t in scheduler.timesteps:
            (x,) = scheduler.step(unet(x, t).sample, t, x, return_dict=False)
    assert torch.allclose(
        x, expected, rtol=0, atol=1e-3 * float(expected.abs().max())
    )  # σ from float32 alphas or betas


def test_ldm_s_first_order_is_ddim_on_its_own_timesteps():
    pipe = ldm_pipeline()
    ddim = run_ldm(pipe, output_type="latent")
    pipe.scheduler = AdamsBashforthScheduler.from_config(pipe.scheduler.config)
    assert isinstance(pipe.scheduler, DDIMScheduler)
    found = []
    for order in (1, 2, 3, 2):
        pipe.scheduler.solver_order = order
        found.append(run_ldm(pipe, output_type="latent"))
    first, second, third, again = found
    assert torch.allclose(first, ddim, rtol=0, atol=1e-4 * float(ddim.abs().max()))  # summed in another order
    assert torch.equal(second, again)  # every run starts from scratch
    assert not torch.allclose(second, ddim, atol=1e-3) and not torch.equal(second, third)


@pytest.mark.parametrize(
    ("config", "eta", "words"),
    [({}, 0.5, "eta is 0.5; it must be 0"), ({"prediction_type": "v_prediction"}, 0.0, "needs epsilon")],
)
def test_unsupported_uses_are_refused(config: dict[str, Any], eta, words):
    scheduler = AdamsBashforthScheduler.from_config(new_scheduler().config, **config)
    scheduler.set_timesteps(10)
    x = torch.zeros(1, 3, 4, 4)
    with pytest.raises(ValueError, match=words):
        scheduler.step(x, scheduler.timesteps[0], x, eta=eta)


def test_settings_of_the_commands(tmp_path):
    for command in (ddpm_command, ldm_command):
        settings = command.settings_of(command.parser().parse_args(["--sampler", "ab2", "--eta", "0.5"]))
        assert "-ab2-" in settings.folder
        with pytest.raises(ValueError, match=r"--eta is 0\.5; .*for ddim only"):
            command.prepare(settings, device=torch.device("cpu"), out=tmp_path)
