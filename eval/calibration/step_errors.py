"""The error of each step of a run if it retrieved an earlier step's feature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from unets.cache.observe import observed_calls


def noise_errors(
    run: Callable[[], object], unet: Any, cache_branch_id: int, num_images: int, guidance_scale: float = 1.0
) -> tuple[np.ndarray, list[Tensor]]:
    """How much the noise predicted at step j changes if it retrieves step i's feature, all steps before j being full.

    Args:
        run: makes `num_images` images in one batch, every step full. If the U-Net's batch has twice as many rows, it is
            [negative, positive], and the error is that of the guided noise.

    Returns:
        (T, T) for T calls, mean squares over images and elements, 0 where j ≤ i; and the T features.
    """
    features: list[Tensor] = []
    columns: list[list[float]] = []

    def guided(noise: Tensor) -> Tensor:
        return guided_noise(noise, num_images, guidance_scale)

    def retrieve_each(inputs: dict[str, Any], noise: Tensor, feature: Tensor) -> None:
        full = guided(noise)
        column = []
        for earlier in features:
            retrieved = unet.forward(**inputs | {"cached_feature": earlier, "return_dict": True}).sample
            column.append(float((guided(retrieved) - full).square().mean()))
        features.append(feature)
        columns.append(column)

    with observed_calls(unet, cache_branch_id, retrieve_each):
        run()
    errors = np.zeros((len(columns), len(columns)))
    for j, column in enumerate(columns):
        errors[:j, j] = column
    return errors, features


def guided_noise(noise: Tensor, num_images: int, guidance_scale: float) -> Tensor:
    """The predicted noise as the sampler gets it, float32 (num_images, …): both halves combined, if it has both."""
    if len(noise) == num_images:
        return noise.float()
    negative, positive = noise.float().chunk(2)
    return negative + guidance_scale * (positive - negative)
