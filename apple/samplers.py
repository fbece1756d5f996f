"""PLMS and DDIM as tables of numbers: what each call of the U-Net is told, and what becomes of its output.

Both move along the same line. With ᾱ and ᾱ' the products of alphas before and after a step, x the latents and v the
output (or several, averaged), x' = p · x + q · v; p and q follow from equation 12 of DDIM (η = 0), of which equation 9
of PNDM is another form.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np

from pipelines.directory import check_config
from pipelines.loading import SCHEDULERS

from .configs import read_config

SAMPLERS = ("plms", "ddim")
OPTIONS = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "set_alpha_to_one", "steps_offset",
    "prediction_type", "timestep_spacing",
    "skip_prk_steps", "clip_sample",  # which must be True and False
    "clip_sample_range", "dynamic_thresholding_ratio", "sample_max_value",  # of no effect without what is refused
)  # fmt: skip
BETAS = {"linear": 1, "scaled_linear": 2}  # the power of what is evenly spaced
# Adams–Bashforth, the newest output first: what PLMS weighs one, two, three and four outputs with.
ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
TRAPEZOID = (1 / 2, 1 / 2)


@dataclass(frozen=True)
class SamplerStep:
    """One call of the U-Net, and the step that is made with its output."""

    timestep: int
    of_latents: float  # p
    of_output: float  # q
    weights: tuple[float, ...]  # of this output and of those before it, the newest first
    again: bool = False  # the step before, made again with what was found at its end


def read_sampler(path: Path, sampler: str | None) -> tuple[str, dict[str, Any]]:
    """The sampler's name and the configuration of its scheduler. Raises ValueError for one that is not written out."""
    names = {SCHEDULERS[name][0]: name for name in SAMPLERS}  # by diffusers' class
    own = check_config(path).get("_class_name")
    if sampler is None and own not in names:
        raise ValueError(f"{path} is of {own}, which is not supported in MLX; give --scheduler plms or ddim")
    name = sampler or names[str(own)]
    class_name, changes = SCHEDULERS[name]
    if sampler is None:
        changes = {}  # the model's own, as it is
    return name, read_config(path, getattr(diffusers, class_name), OPTIONS, **changes)


def sampler_steps(name: str, config: dict[str, Any], num_steps: int) -> list[SamplerStep]:
    """The calls of a run: T of DDIM, one more of PLMS, whose first step is made twice.

    Args:
        name: "plms" or "ddim".
        config: diffusers' configuration of the scheduler, with its defaults filled in.

    Raises:
        ValueError: an option that is not written out, or more steps than the model was trained on.
    """
    trained = config["num_train_timesteps"]
    if not 1 <= num_steps < trained:
        raise ValueError(f"{num_steps} steps; there must be at least 1, and fewer than the model's {trained:,}")
    if not config.get("skip_prk_steps", True) or config.get("clip_sample", False):
        raise ValueError("skip_prk_steps False or clip_sample True is not supported in MLX; name plms or ddim")
    products = alpha_products(config)  # ᾱ of each timestep
    last = 1.0 if config["set_alpha_to_one"] else products[0]
    stride = trained // num_steps

    def step(start: int, weights: tuple[float, ...], told: int | None = None) -> SamplerStep:
        end = start - stride
        p, q = _coefficients(products[start], products[end] if end >= 0 else last, config["prediction_type"])
        return SamplerStep(start if told is None else told, p, q, weights, again=told is not None)

    timesteps = spaced_timesteps(config, num_steps)
    if name == "ddim":
        return [step(t, (1.0,)) for t in timesteps]
    steps = [step(timesteps[0], ADAMS_BASHFORTH[0])]
    if num_steps > 1:
        steps.append(step(timesteps[1] + stride, TRAPEZOID, told=timesteps[1]))
        steps += [step(t, ADAMS_BASHFORTH[min(k, 3)]) for k, t in enumerate(timesteps[1:], start=1)]
    return steps


def spaced_timesteps(config: dict[str, Any], num_steps: int) -> list[int]:
    """The timesteps of a run, falling, spaced as the configuration says. Raises ValueError for another spacing."""
    trained, spacing = config["num_train_timesteps"], config["timestep_spacing"]
    if spacing == "leading":
        rising = np.arange(num_steps) * (trained // num_steps) + config["steps_offset"]
    elif spacing == "linspace":
        rising = np.linspace(0, trained - 1, num_steps).round()
    elif spacing == "trailing":
        rising = np.arange(trained, 0, -trained / num_steps).round()[::-1] - 1
    else:
        raise ValueError(f"timestep_spacing {spacing!r} is not supported in MLX; use stable_diffusion.py")
    return [int(t) for t in rising[::-1]]


def alpha_products(config: dict[str, Any]) -> np.ndarray:
    """ᾱ of each timestep (num_train_timesteps,), in float64. Raises ValueError for another schedule of betas."""
    schedule = config["beta_schedule"]
    if schedule not in BETAS:
        raise ValueError(f"beta_schedule {schedule!r} is not supported in MLX; use stable_diffusion.py")
    power = BETAS[schedule]
    ends = (config["beta_start"] ** (1 / power), config["beta_end"] ** (1 / power))
    return np.cumprod(1 - np.linspace(*ends, config["num_train_timesteps"]) ** power)


def _coefficients(before: float, after: float, prediction_type: str) -> tuple[float, float]:
    """p and q of a step from ᾱ to ᾱ'."""
    signal, noise = before**0.5, (1 - before) ** 0.5
    signal_after, noise_after = after**0.5, (1 - after) ** 0.5
    if prediction_type == "epsilon":  # x0 = (x − noise · v) / signal
        return float(signal_after / signal), float(noise_after - noise * signal_after / signal)
    if prediction_type == "v_prediction":  # x0 = signal · x − noise · v, ε = signal · v + noise · x
        p = signal_after * signal + noise_after * noise
        return float(p), float(noise_after * signal - signal_after * noise)
    raise ValueError(f"prediction_type {prediction_type!r} is not supported in MLX; use stable_diffusion.py")
