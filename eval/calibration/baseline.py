"""The run with every step full: its images, and the calls of the U-Net that make them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unets.cache.config import CacheConfig
from unets.cache.observe import observed_calls

from .images import ImageMaker
from .influence import influence


@dataclass(frozen=True)
class Call:
    """The inputs of a U-Net call: the timestep, and the shapes of the latents and of the context."""

    timestep: float
    sample: tuple[int, ...]
    context: tuple[int, ...] | None


@dataclass(frozen=True, eq=False)
class Baseline:
    """Held-out images, on which schedules are tried, made with every step full.

    Attributes:
        indices: of the images.
        images: uint8 (N, H, W, 3).
        calls: the T calls of the U-Net in a run.
        influence: (T,), how much the result changes with each call's output.
        positions: P ≤ T; the first P calls can be full steps.
        guidance_scale: 1 for a model without guidance.
    """

    indices: range
    images: np.ndarray
    calls: list[Call]
    influence: np.ndarray
    positions: int
    guidance_scale: float


@torch.no_grad()
def make_baseline(maker: ImageMaker, indices: range, alphas_cumprod: Tensor, prediction_type: str) -> Baseline:
    """Makes the images of these indices with every step full; the other arguments are those of `influence`."""
    made: list[np.ndarray] = []
    calls = calls_of(lambda: made.append(maker.make(indices, CacheConfig(), "baseline")), maker.run.unet)
    calls = calls[: len(calls) // math.ceil(len(indices) / maker.batch_size)]  # those of one batch
    recorded = maker.run.image_set.settings
    plms = "plms" in (recorded.get("scheduler"), recorded.get("sampler"))  # its one extra call always retrieves
    return Baseline(
        indices=indices,
        images=made[0],
        calls=calls,
        influence=influence([call.timestep for call in calls], alphas_cumprod, prediction_type),
        positions=len(calls) - plms,
        guidance_scale=recorded.get("guidance_scale", 1.0),
    )


def calls_of(run: Callable[[], object], unet: Any) -> list[Call]:
    """The calls of the U-Net within `run()`, in order; every step must be full."""
    calls: list[Call] = []

    def note(inputs: dict[str, Any], _noise: Tensor, _feature: Tensor) -> None:
        context = inputs.get("encoder_hidden_states")
        shape = None if context is None else tuple(context.shape)
        calls.append(Call(float(inputs["timestep"]), tuple(inputs["sample"].shape), shape))

    with observed_calls(unet, 0, note):
        run()
    return calls
