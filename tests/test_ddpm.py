"""The loop of DDPM and DDIM against diffusers' schedulers, against a cache by hand, and on the shipped model."""

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.shipped import SHAPES_DDPM
from ddpm.checkpoint import load_unet
from ddpm.sampler import alphas_cumprod, ddim_sample, ddpm_sample, noise_like, timesteps_of
from tests.tiny_ddpm import Uncached, sample, stock_unet
from unets import fork_of
from unets.cache.schedule import full_steps


def generators(count=2, seed=0):
    return [torch.Generator().manual_seed(seed + k) for k in range(count)]


def by_scheduler(scheduler, unet, x, steps, **extra):
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        x = scheduler.step(unet(x, t).sample, t, x, **extra).prev_sample
    return x


@pytest.mark.parametrize("steps", [10, 20])
def test_ddim_is_diffusers_ddim(steps):
    unet = fork_of(stock_unet("cifar10"))
    x = sample("cifar10")
    scheduler = diffusers.DDIMScheduler(beta_start=1e-4, beta_end=0.02, clip_sample=False)
    expected = by_scheduler(scheduler, unet, x, steps)
    ours = ddim_sample(unet, x, timesteps_of(steps, "uniform"))
    # The scheduler divides and multiplies in another order, in float32.
    assert (ours - expected).abs().max() < 1e-5 * expected.abs().max()


def test_eta_is_diffusers_eta():
    unet = fork_of(stock_unet("cifar10"))
    x = sample("cifar10")
    scheduler = diffusers.DDIMScheduler(beta_start=1e-4, beta_end=0.02, clip_sample=False)
    expected = by_scheduler(scheduler, unet, x, 10, eta=0.7, generator=generators())
    ours = ddim_sample(unet, x, timesteps_of(10, "uniform"), eta=0.7, generators=generators())
    # As above.
    assert (ours - expected).abs().max() < 1e-5 * expected.abs().max()


def test_ancestral_sampling_is_diffusers_ddpm_with_the_large_variance():
    unet = fork_of(stock_unet("cifar10"))
    x = sample("cifar10")
    scheduler = diffusers.DDPMScheduler(beta_start=1e-4, beta_end=0.02, variance_type="fixed_large", clip_sample=True)
    expected = by_scheduler(scheduler, unet, x, 10, generator=generators())
    ours = ddpm_sample(unet, x, timesteps_of(10, "uniform"), generators=generators())
    # The scheduler computes its coefficients in another order, in float32.
    assert (ours - expected).abs().max() < 1e-4 * expected.abs().max()


def test_timesteps_are_those_of_the_original():
    assert timesteps_of(100, "uniform") == list(range(0, 1000, 10))
    quad = timesteps_of(100, "quad")
    assert len(quad) == 100 and len(set(quad)) == 96 and quad[0] == 0 and quad[-1] in (799, 800)
    assert len(timesteps_of(59, "uniform")) == 63


@given(st.integers(1, 1000), st.sampled_from(["uniform", "quad"]))
def test_timesteps_rise_and_are_the_models(steps, skip_type):
    timesteps = timesteps_of(steps, skip_type)
    assert timesteps == sorted(timesteps)
    assert timesteps[0] == 0 and timesteps[-1] < 1000 and len(timesteps) >= steps


def test_the_alphas_are_diffusers():
    expected = diffusers.DDPMScheduler(beta_start=1e-4, beta_end=0.02).alphas_cumprod
    # Both are products of a thousand float32 factors.
    assert torch.allclose(alphas_cumprod()[1:], expected, rtol=1e-5)
    assert alphas_cumprod()[0] == 1


def test_a_repeated_timestep_changes_nothing_without_noise():
    unet = fork_of(stock_unet("cifar10"))
    x = sample("cifar10")
    once = ddim_sample(unet, x, [0, 300, 600])
    # A step of length 0 takes the noise out and puts it in again, in float32.
    assert torch.allclose(ddim_sample(unet, x, [0, 300, 300, 600]), once, atol=1e-4)


@pytest.mark.parametrize("m", [0, 2, 5, 11])
@pytest.mark.parametrize("schedule", [{"cache_interval": 3}, {"cache_steps": [0, 1, 5]},
                                      {"cache_interval": 2, "uniform": False, "pow": 1.4, "center": 4}])  # fmt: skip
def test_with_the_cache_it_is_ddim_over_a_stock_model_whose_feature_is_put_back_by_hooks(m, schedule):
    stock = stock_unet("cifar10")
    x, timesteps = sample("cifar10"), timesteps_of(10, "uniform")
    uncached, full, kept = Uncached(stock), full_steps(10, **schedule), None
    resnet = [resnet for block in stock.up_blocks for resnet in block.resnets][::-1][m]
    width = fork_of(stock)(x, 1, cache_branch_id=m).cached_feature.shape[1]

    def hook(_, args):
        nonlocal kept
        if uncached.position in full:
            kept = args[0][:, :width].clone()
            return None
        assert kept is not None
        return (torch.cat([kept, args[0][:, width:]], dim=1), *args[1:])

    handle = resnet.register_forward_pre_hook(hook)
    expected = ddim_sample(uncached, x, timesteps)
    handle.remove()
    assert torch.equal(ddim_sample(fork_of(stock), x, timesteps, cache_branch_id=m, **schedule), expected)


def test_interval_1_is_the_loop_without_a_cache_bit_for_bit():
    unet = fork_of(stock_unet("cifar10"))
    x, timesteps = sample("cifar10"), timesteps_of(10, "quad")
    assert torch.equal(ddim_sample(unet, x, timesteps, cache_interval=1, cache_branch_id=3),
                       ddim_sample(unet, x, timesteps))  # fmt: skip


def test_an_images_noise_does_not_depend_on_those_beside_it():
    both = noise_like(torch.empty(2, 3, 4, 4), generators())
    assert torch.equal(both[1:], noise_like(torch.empty(1, 3, 4, 4), generators()[1:]))


@pytest.mark.parametrize("extension", [{"reuse_guidance": True}, {"guidance_stop": 0.5}, {"reuse_attention": True}])
def test_an_extension_that_it_does_not_have_is_refused_by_name(extension):
    (name,) = extension
    with pytest.raises(ValueError, match=f"{name} is not available here; leave it out"):
        ddim_sample(fork_of(stock_unet("cifar10")), sample("cifar10"), [0, 300, 600], **extension)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: timesteps_of(0, "uniform"), "steps is 0"),
        (lambda: timesteps_of(10, "cubic"), "unknown skip_type"),
        (lambda: ddim_sample(None, torch.empty(1), [0], eta=-1), "eta is -1"),
        (lambda: ddim_sample(None, torch.empty(1), [0], eta=1), "needs generators"),
    ],
)
def test_a_wrong_argument_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_the_shipped_model_is_small_and_draws_flat_shapes():
    """Of pictures of it, unlike of noise, most neighbouring pixels are nearly equal, and no two pictures are alike."""
    assert sum(path.stat().st_size for path in SHAPES_DDPM.rglob("*.safetensors")) <= 12e6
    unet = load_unet(SHAPES_DDPM).eval()
    noise = noise_like(torch.empty(8, 3, 32, 32), generators(8))
    images = ddim_sample(unet, noise, timesteps_of(50, "quad"), cache_interval=5, cache_branch_id=2).clamp(-1, 1)
    steps = np.abs(np.diff(images.numpy(), axis=-1))
    assert np.median(steps) < 0.05
    assert images.std(dim=0).mean() > 0.1
