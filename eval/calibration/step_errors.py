"""What each step of a run would lose by retrieving an earlier step's feature, and runs with any steps full.

All of it is done to the U-Net of a run that is made without a cache, so it is the same for every sampler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from unets.cache.features import Forecast, KeptFeatures


@dataclass
class Call:
    """What a run gave the U-Net at one of its steps: the timestep, and the shapes of the latents and of the context."""

    timestep: float
    sample: tuple[int, ...]
    context: tuple[int, ...] | None


@contextmanager
def forward_of(unet: Any, forward: Callable[..., Any]) -> Iterator[None]:
    """While open, a call of the U-Net gives the noise of `forward(stock, *args, **kwargs)`, `stock` its own forward."""
    stock = unet.forward

    def replaced(*args: Any, cache_branch_id: int | None = None, cached_feature: Any = None, **kwargs: Any) -> Any:
        if cache_branch_id is not None or cached_feature is not None:
            raise ValueError("the run has a cache of its own; run with cache_interval=1")
        output = forward(stock, *args, **kwargs)
        return type(output)(sample=output.sample)

    unet.forward = replaced
    try:
        yield
    finally:
        unet.forward = stock


def calls_of(run: Callable[[], Any], unet: Any) -> list[Call]:
    """The calls of the U-Net within `run()`, in their order."""
    calls: list[Call] = []

    def note(_: Any, args: tuple, kwargs: dict) -> None:
        given = dict(zip(("sample", "timestep", "encoder_hidden_states"), args, strict=False)) | kwargs
        context = given.get("encoder_hidden_states")
        shape = None if context is None else tuple(context.shape)
        calls.append(Call(float(given["timestep"]), tuple(given["sample"].shape), shape))

    hook = unet.register_forward_pre_hook(note, with_kwargs=True)
    try:
        run()
    finally:
        hook.remove()
    return calls


@contextmanager
def schedule(
    unet: Any, cache_branch_id: int, cache_steps: Sequence[int], num_calls: int, forecast: Forecast = 0.0
) -> Iterator[None]:
    """While open, runs of `num_calls` calls that are made without a cache have the one of these full steps."""
    position, features = 0, KeptFeatures(cache_steps, num_calls, forecast)

    def forward(stock: Callable, *args: Any, **kwargs: Any) -> Any:
        nonlocal position, features
        if position == num_calls:
            position, features = 0, KeptFeatures(cache_steps, num_calls, forecast)
        kept = features.at(position, len(kwargs["sample"] if "sample" in kwargs else args[0]))
        output = stock(*args, **kwargs, cache_branch_id=cache_branch_id, cached_feature=kept)
        if kept is None:
            features.keep(position, output.cached_feature)
        position += 1
        return output

    with forward_of(unet, forward):
        yield


def noise_errors(
    run: Callable[[], Any],
    unet: Any,
    cache_branch_id: int,
    images: int,
    guidance_scale: float = 1.0,
    features: list[Tensor] | None = None,
) -> np.ndarray:
    """How far the noise predicted at step j moves if it retrieves step i's feature, everything before j in full.

    Args:
        run: makes `images` images, every step full. If the U-Net's batch has twice as many, it is [negative, positive],
            and the error is of what guidance makes of both.
        features: an empty list, to be given the feature of each step.

    Returns:
        (T, T) for T calls, mean squares over images and elements, 0 where j ≤ i.
    """
    kept: list[Tensor] = [] if features is None else features
    columns: list[list[float]] = []

    def guided(noise: Tensor) -> Tensor:
        if len(noise) == images:
            return noise.float()
        negative, positive = noise.float().chunk(2)
        return negative + guidance_scale * (positive - negative)

    def forward(stock: Callable, *args: Any, **kwargs: Any) -> Any:
        output = stock(*args, **kwargs, cache_branch_id=cache_branch_id)
        noise = guided(output.sample)
        column = []
        for feature in kept:
            retrieved = stock(*args, **kwargs, cache_branch_id=cache_branch_id, cached_feature=feature).sample
            column.append(float((guided(retrieved) - noise).square().mean()))
        kept.append(output.cached_feature)
        columns.append(column)
        return output

    with forward_of(unet, forward):
        run()
    error = np.zeros((len(columns), len(columns)))
    for j, column in enumerate(columns):
        error[:j, j] = column
    return error


def influence(timesteps: Sequence[float], alphas_cumprod: Tensor, prediction_type: str = "epsilon") -> np.ndarray:
    """How far the result moves with the U-Net's output at each step, (T,), later outputs held.

    With σ = √(1/ᾱ − 1), all samplers integrate d(x/√ᾱ)/dσ = ε over the timesteps, down to σ = 0 where x is x_0 (Song et
    al. 2021, equation 14; DDIM is Euler's method of it): an error of ε counts by the interval that follows. A second
    call at the same timestep, Heun's and PLMS's, has half of the interval before it. An error of v is one of √ᾱ v in ε,
    and one of x_0 is one of x_0 / σ.
    """
    grid = np.arange(len(alphas_cumprod))
    alphas = np.interp(timesteps, grid, alphas_cumprod.double().numpy())  # some samplers' timesteps are between
    sigmas = np.sqrt(1 / alphas - 1)
    intervals = np.abs(np.diff(sigmas, append=0.0))
    weights = intervals.copy()
    first_calls = np.flatnonzero(intervals == 0) - 1
    for i in first_calls[first_calls >= 0]:
        weights[i : i + 2] = intervals[i] / 2
    return weights * {"epsilon": 1.0, "v_prediction": np.sqrt(alphas), "sample": 1 / sigmas}[prediction_type]
