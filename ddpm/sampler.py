"""Sampling of DDPM and DDIM (Ho et al. 2020, Song et al. 2021), with DeepCache in the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pipelines.adams_bashforth import NoiseHistory
from pipelines.base import timesteps_to_device
from unets.cache.config import CacheConfig, FeatureExtensions
from unets.cache.run import CacheRun

NUM_TRAIN_TIMESTEPS = 1000
Step = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def timesteps_of(steps: int, skip_type: str) -> list[int]:
    """The timesteps of a run, ascending, as ermongroup/ddim picks them.

    "uniform" takes every (1000 // steps)-th from 0: where `steps` doesn't divide 1000 there are more than `steps`.
    "quad" takes the squares of `steps` numbers from 0 to √800, cut to whole numbers: small ones repeat, and a repeat
    is a step of length 0.

    Raises:
        ValueError: an unknown type, or more steps than in training.
    """
    if not 1 <= steps <= NUM_TRAIN_TIMESTEPS:
        raise ValueError(f"steps is {steps}; it must be 1 to {NUM_TRAIN_TIMESTEPS}")
    if skip_type == "uniform":
        return list(range(0, NUM_TRAIN_TIMESTEPS, NUM_TRAIN_TIMESTEPS // steps))
    if skip_type == "quad":
        return [int(t) for t in np.linspace(0, np.sqrt(0.8 * NUM_TRAIN_TIMESTEPS), steps) ** 2]
    raise ValueError(f"unknown skip_type {skip_type!r}; there are uniform and quad")


def alphas_cumprod() -> Tensor:
    """ᾱ_t for t = −1 (which is 1) to 999, float32 (1001,): betas are linear from 1e-4 to 0.02."""
    betas = torch.from_numpy(np.linspace(1e-4, 0.02, NUM_TRAIN_TIMESTEPS)).float()
    return torch.cat([torch.ones(1), (1 - betas).cumprod(0)])


def denoise(
    unet: Any,
    noise: Tensor,
    timesteps: Sequence[int],
    step: Step,
    *,
    noisy: bool = False,
    quiet: bool = True,
    cache_interval: int = 1,
    cache_branch_id: int = 0,
    uniform: bool = True,
    pow: float | None = None,
    center: int | None = None,
    cache_steps: Sequence[int] | None = None,
    **extensions: Unpack[FeatureExtensions],
) -> Tensor:
    """Runs `timesteps`, given ascending, from the last to the first.

    Args:
        unet: a forked `UNet2DModel`.
        noise: (B, C, H, W) standard normal.
        step: maps x_t, the predicted noise, ᾱ_t and ᾱ of the next timestep to x at the next timestep.
        noisy: whether `step` adds noise, in which case no step can be skipped.
        cache_interval, … cache_steps, and extensions beyond the paper: see `CacheConfig`.

    Returns:
        (B, C, H, W) float32, in [−1, 1] except where the model overshoots.

    Raises:
        ValueError: an argument of the cache out of range, by name.
    """
    # 1. Check, and which steps are full.
    config = CacheConfig(cache_interval, cache_branch_id, uniform, pow, center, cache_steps, **extensions)
    config.refuse("reuse_guidance", "guidance_stop", "reuse_attention")
    if noisy:
        config.refuse("skip_interval", "skip_steps")
    cache = CacheRun(config, unet, len(timesteps), len(timesteps))

    # 2. Denoise.
    alphas = alphas_cumprod()  # on the host, where indexing gives plain numbers
    unet_timesteps = timesteps_to_device(torch.tensor(timesteps), noise.device).flip(0)
    x = noise.float()
    pairs = list(zip(timesteps, [-1, *timesteps[:-1]], strict=True))[::-1]
    for i, (t, t_next) in enumerate(tqdm(pairs, disable=quiet, leave=False, mininterval=1)):
        # cache (1): equation 6, is this step full or does it retrieve?
        planned = cache.plan(i, len(x))
        output = None
        if not planned.skips:  # a skipped step needs no U-Net
            output = unet(x.to(unet.dtype), unet_timesteps[i], **planned.unet_arguments)  # cache (2): equations 4 and 5
        eps = cache.take(planned, output).float()  # cache (3): caches the feature for later steps
        del output  # or its feature would stay in memory through the next full step
        x = step(x, eps, alphas[t + 1], alphas[t_next + 1])
    return x


def ddim_sample(
    unet: Any,
    noise: Tensor,
    timesteps: Sequence[int],
    *,
    eta: float = 0.0,
    generators: Sequence[torch.Generator] | None = None,
    **settings: Any,
) -> Tensor:
    """DDIM (Song et al. 2021, equation 12), without clipping; η = 0 is deterministic.

    Args:
        generators: one for each image; needed if η > 0. `settings` and the rest are those of `denoise`.

    Raises:
        ValueError: an argument out of range, by name.
    """
    if eta < 0 or (eta > 0 and generators is None):
        raise ValueError(f"eta is {eta}; it must be at least 0, and needs generators where it is above 0")

    def step(x: Tensor, eps: Tensor, alpha: Tensor, alpha_next: Tensor) -> Tensor:
        x0 = (x - (1 - alpha).sqrt() * eps) / alpha.sqrt()
        sigma = eta * ((1 - alpha / alpha_next) * (1 - alpha_next) / (1 - alpha)).sqrt()  # equation 16
        x = alpha_next.sqrt() * x0 + (1 - alpha_next - sigma**2).sqrt() * eps
        return x + sigma * noise_like(x, generators) if generators is not None and eta > 0 else x

    return denoise(unet, noise, timesteps, step, noisy=eta > 0, **settings)


def ab_sample(unet: Any, noise: Tensor, timesteps: Sequence[int], *, order: int, **settings: Any) -> Tensor:
    """Exponential Adams–Bashforth of order 2 or 3 (`pipelines.adams_bashforth`); other arguments as of `denoise`."""
    sigmas = (1 / alphas_cumprod().double() - 1).sqrt().numpy()
    history = NoiseHistory(timesteps[::-1], sigmas, order)

    def step(x: Tensor, eps: Tensor, alpha: Tensor, alpha_next: Tensor) -> Tensor:
        return (x / alpha.sqrt() + history.add(eps)) * alpha_next.sqrt()

    return denoise(unet, noise, timesteps, step, **settings)


def ddpm_sample(
    unet: Any,
    noise: Tensor,
    timesteps: Sequence[int],
    *,
    generators: Sequence[torch.Generator],
    **settings: Any,
) -> Tensor:
    """Ancestral sampling with the larger variance, β (Ho et al. 2020, algorithm 2), x_0 clipped to [−1, 1].

    Between timesteps more than one apart, β is 1 − ᾱ_t / ᾱ_next, as in ermongroup/ddim's `ddpm_noisy`.
    Arguments are those of `ddim_sample`.
    """

    def step(x: Tensor, eps: Tensor, alpha: Tensor, alpha_next: Tensor) -> Tensor:
        beta = 1 - alpha / alpha_next
        x0 = ((x - (1 - alpha).sqrt() * eps) / alpha.sqrt()).clamp(-1, 1)
        mean = (alpha_next.sqrt() * beta * x0 + (1 - beta).sqrt() * (1 - alpha_next) * x) / (1 - alpha)  # equation 7
        return mean if alpha_next == 1 else mean + beta.sqrt() * noise_like(x, generators)

    return denoise(unet, noise, timesteps, step, noisy=True, **settings)


def noise_like(x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Standard normal noise, image k's drawn from generator k: it does not depend on the other images of the batch."""
    return torch.stack([torch.randn(x.shape[1:], generator=g) for g in generators]).to(x.device)
