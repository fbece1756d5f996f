"""How much a run's result changes with the U-Net's output at each of its steps."""

from __future__ import annotations

from collections.abc import Sequence

import diffusers
import numpy as np
from torch import Tensor

import ddpm.sample
import ldm.sample
from common.shipped import SHAPES_SD
from ddpm.sampler import alphas_cumprod
from ldm.checkpoint import new_scheduler
from pipelines.loading import MIRRORS

from ..generation import text

SamplingSettings = ddpm.sample.Settings | ldm.sample.Settings | text.Settings


def noise_schedule(settings: SamplingSettings) -> tuple[Tensor, str]:
    """ᾱ of the training timesteps, and the model's prediction type, as diffusers names it."""
    match settings:
        case ddpm.sample.Settings():
            return alphas_cumprod()[1:], "epsilon"
        case ldm.sample.Settings():
            return new_scheduler().alphas_cumprod, "epsilon"
        case text.Settings():
            name = SHAPES_SD if settings.model is None else MIRRORS.get(settings.model, settings.model)
            scheduler = diffusers.DDPMScheduler.from_pretrained(name, subfolder="scheduler")
            return scheduler.alphas_cumprod, scheduler.config.prediction_type


def influence(timesteps: Sequence[float], alphas_cumprod: Tensor, prediction_type: str = "epsilon") -> np.ndarray:
    """How much the result changes with the U-Net's output at each step, (T,), later outputs held fixed.

    With σ = √(1/ᾱ − 1), all samplers integrate d(x/√ᾱ)/dσ = ε over the timesteps, down to σ = 0 where x is x_0 (Song et
    al. 2021, equation 14; DDIM is Euler's method of it): an error of ε counts by the interval that follows. A second
    call at the same timestep, Heun's and PLMS's, has half of the interval before it. An error of v is one of √ᾱ v in ε,
    and one of x_0 is one of x_0 / σ.
    """
    grid = np.arange(len(alphas_cumprod))
    alphas = np.interp(timesteps, grid, alphas_cumprod.double().numpy())  # some samplers' timesteps are fractional
    sigmas = np.sqrt(1 / alphas - 1)
    intervals = np.abs(np.diff(sigmas, append=0.0))
    weights = intervals.copy()
    first_calls = np.flatnonzero(intervals == 0) - 1
    for i in first_calls[first_calls >= 0]:
        weights[i : i + 2] = intervals[i] / 2
    return weights * {"epsilon": 1.0, "v_prediction": np.sqrt(alphas), "sample": 1 / sigmas}[prediction_type]
