"""Methods of others: by hand arithmetic, and the baseline bit for bit where they do nothing."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.published import (
    AYS_TIMESTEPS,
    AlignYourStepsScheduler,
    PFDiff,
    PFDiffScheduler,
    easycache,
    pfdiff_sample,
    tgate,
)
from ddpm.sampler import alphas_cumprod, ddim_sample, noise_like, timesteps_of
from image_sets.batches import Batch
from pipelines.loading import new_scheduler
from tests.families import FAMILIES
from tests.recorders import batch_sizes_of
from tests.tiny_ddpm import stock_unet
from unets import fork_of


def fork(scheduler="ddim"):
    return FAMILIES["sd"].pair(scheduler)[1]


def run(pipe, steps=4):
    return FAMILIES["sd"].run(pipe, steps)


class Predicts(nn.Module):
    """Stands for a U-Net: its noise is what `of` makes of its input."""

    def __init__(self, of):
        super().__init__()
        self.of, self.inputs = of, []

    def forward(self, x):
        self.inputs.append(float(x[0]))
        return SimpleNamespace(sample=self.of(x))


# --- T-GATE ----------------------------------------------------------------------------------------------------------


def test_tgate_with_the_gate_at_the_end_is_the_baseline_bit_for_bit():
    pipe = fork()
    expected = run(pipe)
    with tgate(pipe.unet, 4):
        assert np.array_equal(run(pipe), expected)
    assert np.array_equal(run(pipe), expected)  # and all is put back


def test_after_the_gate_one_half_is_run_without_cross_attention():
    pipe = fork()
    expected, calls = run(pipe), batch_sizes_of(pipe)
    layers = [layer for name, layer in pipe.unet.named_modules() if name.endswith(".attn2")]
    kept: list[list[torch.Tensor]] = [[] for _ in layers]
    queries: list[int] = []
    for layer, outputs in zip(layers, kept, strict=True):
        layer.register_forward_hook(lambda _, __, output, outputs=outputs: outputs.append(output))
        layer.to_q.register_forward_hook(lambda *_: queries.append(1))
    with tgate(pipe.unet, 2):
        assert not np.array_equal(run(pipe), expected)
    halves = calls[0] // 2
    assert calls == [2 * halves] * 4  # as the pipeline calls it
    assert len(queries) == 2 * len(layers)
    for outputs in kept:
        mean = (outputs[1][:halves] + outputs[1][halves:]) / 2
        assert torch.equal(outputs[2], mean) and torch.equal(outputs[3], mean)


# --- EasyCache -------------------------------------------------------------------------------------------------------


def test_easycache_with_threshold_0_is_the_baseline_bit_for_bit():
    pipe = fork()
    expected = run(pipe, 6)
    with easycache(pipe.unet, 6, threshold=0.0, warm_up=2, guided=True):
        assert np.array_equal(run(pipe, 6), expected)
    with easycache(pipe.unet, 6, threshold=100.0, warm_up=2, guided=True):
        assert not np.array_equal(run(pipe, 6), expected)
    assert np.array_equal(run(pipe, 6), expected)


def test_easycache_skips_while_the_errors_that_it_expects_have_a_small_sum():
    unet = Predicts(lambda x: 2 * x + 10)
    # k is 2 throughout, Δ = x + 10 of the last computed call. At x = 12 the error is 2 · 1 / |v′ = 32| = 0.0625; at
    # 13 it is 2 · 1 / 33 more, 0.1231; at 14 2 · 1 / 34 more, 0.1819, above 0.15, so that is computed. Then it is
    # 2 · 1 / 38 = 0.0526 at 15; the last is computed.
    with easycache(unet, 6, threshold=0.15, warm_up=2):
        outputs = [float(unet(torch.tensor([float(x)])).sample) for x in (10, 11, 12, 13, 14, 15)]
    assert unet.inputs == [10, 11, 14, 15]
    assert outputs == [30, 32, 12 + 21, 13 + 21, 38, 40]


# --- PFDiff ----------------------------------------------------------------------------------------------------------


def test_pfdiff_goes_by_springboards():
    sigmas = [8.0, 6.0, 5.0, 3.0, 2.0, 0.0]  # five of the grid and the end: three calls

    def ddim(y, noise, start, end):
        return y + (sigmas[end] - sigmas[start]) * noise

    y, noises = torch.tensor(1.0), [torch.tensor(v) for v in (1.0, 2.0, 4.0)]
    pfdiff = PFDiff(sigmas)
    springboard, found = y, []
    for noise in noises:
        springboard = springboard + pfdiff.add(noise)
        found.append(float(springboard))
    base = ddim(y, noises[0], 0, 1)  # 1 − 2 = −1
    expected = [float(ddim(base, noises[0], 1, 2))]  # −1 − 1 = −2
    base = ddim(base, noises[1], 1, 3)  # −1 − 3 · 2 = −7
    expected.append(float(ddim(base, noises[1], 3, 4)))  # −7 − 2 = −9
    expected.append(float(ddim(base, noises[2], 3, 5)))  # −7 − 3 · 4 = −19
    assert found == expected == [-2, -9, -19]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_pfdiff_of_a_constant_noise_is_exact(prediction):
    config = new_scheduler("ddim", fork().scheduler.config).config
    scheduler = PFDiffScheduler.from_config(config, prediction_type=prediction)
    scheduler.set_timesteps(5)
    assert scheduler.timesteps.tolist() == [999, 777, 555, 333, 111]
    sigmas = (1 / scheduler.alphas_cumprod.double() - 1).sqrt()
    noise, clean = torch.tensor([0.5, -1.0]).double(), torch.tensor([0.3, 0.2]).double()

    def at(t):
        return (clean + sigmas[t] * noise) / (1 + sigmas[t] ** 2).sqrt()

    x = at(999)
    for t, target in zip(scheduler.timesteps, [777, 555, 333, 111, 0], strict=True):
        alpha = 1 / (1 + sigmas[t] ** 2)
        v = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        x = scheduler.step(v if prediction == "v_prediction" else noise, t, x, return_dict=False)[0]
        assert torch.allclose(x, at(target))


def test_pfdiff_of_one_call_is_ddim():
    unet, batch = fork_of(stock_unet()), Batch.of(0, [0, 1])
    side = unet.config.sample_size
    x = noise_like(torch.empty(2, unet.config.in_channels, side, side), Batch.of(0, [0, 1]).generators)
    expected = ddim_sample(unet, x, timesteps_of(1, "quad"))
    assert torch.allclose(pfdiff_sample(unet, batch, 1), expected, atol=1e-6)
    calls: list[int] = []
    unet.register_forward_hook(lambda *_: calls.append(1))
    assert pfdiff_sample(unet, Batch.of(0, [0, 1]), 4).isfinite().all()
    assert len(calls) == 4 and alphas_cumprod()[0] == 1


# --- Align Your Steps ------------------------------------------------------------------------------------------------


def test_align_your_steps_has_the_published_timesteps_and_others_between_them():
    config = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}  # Stable Diffusion's
    scheduler = AlignYourStepsScheduler(**config)
    scheduler.set_timesteps(10)
    assert scheduler.timesteps.tolist() == list(AYS_TIMESTEPS[:-1])
    # What they print as σ of these timesteps.
    printed = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029]
    assert scheduler.sigmas.tolist() == pytest.approx(printed, abs=6e-3)
    scheduler.set_timesteps(20)
    assert scheduler.timesteps[::2].tolist() == list(AYS_TIMESTEPS[:-1])
    between = scheduler.sigmas[1::2].log() - (scheduler.sigmas[:-1:2].log() + scheduler.sigmas[2::2].log()) / 2
    assert between.abs().max() < 0.05  # whole timesteps; the last are 24, 8 and 0
