"""Sampling of DDPM and DDIM (Ho et al. 2020, Song et al. 2021), with DeepCache in the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pipelines.cache_schedule import full_steps
from pipelines.kept_features import Forecast
from pipelines.run_cache import RunCache

NUM_TRAIN_TIMESTEPS = 1000
Step = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def timesteps_of(steps: int, skip_type: str) -> list[int]:
    """The timesteps of a run, ascending, as ermongroup/ddim picks them.

    "uniform" takes every (1000 // steps)-th from 0: where `steps` doesn't divide 1000 there are more than `steps`.
    "quad" takes the squares of `steps` numbers from 0 to √800, cut to whole numbers: small ones repeat, and a repeat
    is a step of length 0.

    Raises:
        ValueError: an unknown type, or more steps than the model was trained on.
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
    quiet: bool = True,
    cache_interval: int = 1,
    cache_branch_id: int = 0,
    uniform: bool = True,
    pow: float | None = None,
    center: int | None = None,
    cache_steps: Sequence[int] | None = None,
    forecast: Forecast = 0.0,
    refresh_interval: int | None = None,
    refresh_branch_id: int | None = None,
) -> Tensor:
    """Runs `timesteps`, given ascending, from the last to the first. The cache's arguments, and those from `forecast`
    on, are the pipelines'.

    Args:
        unet: a forked `UNet2DModel`.
        noise: (B, C, H, W) standard normal.
        step: from x_t, the predicted noise, ᾱ_t and ᾱ of the next timestep to x at the next timestep.

    Returns:
        (B, C, H, W) float32, in [−1, 1] but for what the model oversteps.

    Raises:
        ValueError: an argument of the cache out of range, by name.
    """
    # 1. Which steps are full.
    unet.check_branch(cache_branch_id)
    if refresh_branch_id is not None:
        unet.check_branch(refresh_branch_id, "refresh_branch_id")
    full = set(full_steps(
        len(timesteps), cache_interval, uniform=uniform, pow=pow, center=center, cache_steps=cache_steps
    ))  # fmt: skip
    m = None if len(full) == len(timesteps) else cache_branch_id

    # 2. Denoise.
    alphas = alphas_cumprod().to(noise.device)
    x = noise.float()
    pairs = list(zip(timesteps, [-1, *timesteps[:-1]], strict=True))[::-1]
    cache = RunCache(full, len(timesteps), m, forecast, refresh_interval, refresh_branch_id)
    for i, (t, t_next) in enumerate(tqdm(pairs, disable=quiet, leave=False, mininterval=1)):
        # cache (1): equation 6, a full step keeps anew and gets None; all others retrieve
        at = cache.step(i, len(x))
        output = unet(
            x.to(unet.dtype), t, cache_branch_id=at.branch, cached_feature=at.feature, keep_branch_id=at.keep_branch
        )
        eps = output.sample.float()
        cache.keep(i, at, output)  # cache (2): the loop owns the feature
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

    Between timesteps that are further than one apart, β is 1 − ᾱ_t / ᾱ_next, as in ermongroup/ddim's `ddpm_noisy`.
    Arguments are those of `ddim_sample`.
    """

    def step(x: Tensor, eps: Tensor, alpha: Tensor, alpha_next: Tensor) -> Tensor:
        beta = 1 - alpha / alpha_next
        x0 = ((x - (1 - alpha).sqrt() * eps) / alpha.sqrt()).clamp(-1, 1)
        mean = (alpha_next.sqrt() * beta * x0 + (1 - beta).sqrt() * (1 - alpha_next) * x) / (1 - alpha)  # equation 7
        return mean if alpha_next == 1 else mean + beta.sqrt() * noise_like(x, generators)

    return denoise(unet, noise, timesteps, step, **settings)


def noise_like(x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Standard normal, image k's drawn from generator k: what an image gets does not depend on those beside it."""
    return torch.stack([torch.randn(x.shape[1:], generator=g) for g in generators]).to(x.device)
