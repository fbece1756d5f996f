"""Finds the two halves of classifier-free guidance in the arguments that a stock pipeline gives its U-Net."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

REMEDY = "leave out reuse_guidance and guidance_stop"


def is_guided(pipe: Any, unet: Any, sample: Tensor) -> bool:
    """Whether a batch is (2B, …): the same latents twice, for the unconditional half and then the conditional one.

    Raises:
        ValueError: the pipeline uses another kind of guidance, or does not say whether it uses any.
    """
    name = type(pipe).__name__
    if getattr(pipe, "do_perturbed_attention_guidance", False):
        raise ValueError(f"guidance can't be reused with the perturbed attention of {name}; {REMEDY}")
    guided = _uses_guidance(pipe)
    if guided is None:
        raise ValueError(f"{name} does not say whether it uses guidance, so it can't be reused; {REMEDY}")
    if not guided:
        return False
    latents = sample.narrow(2 if unet.frame_axis == 1 else 1, 0, unet.config.out_channels)
    # A batch of three equal parts can have equal halves, too.
    if not _equal_parts(latents, 2) or _equal_parts(latents, 3):
        raise ValueError(
            f"the {len(sample)} rows that {name} gives its U-Net are not an unconditional and a conditional half, so "
            f"guidance can't be reused; {REMEDY}"
        )
    return True


def conditional_half(value: Any, batch_size: int, name: str = "an argument") -> Any:
    """The second half of every tensor with that batch size, or a multiple of it, in the U-Net's arguments.

    Scalars and tensors with one row are for the whole batch and stay unchanged.

    Raises:
        ValueError: a tensor with another number of rows.
    """
    if isinstance(value, dict):
        return {key: conditional_half(one, batch_size, str(key)) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(conditional_half(one, batch_size, name) for one in value)
    if not isinstance(value, Tensor) or value.ndim == 0 or len(value) == 1:
        return value
    if len(value) % batch_size:
        raise ValueError(
            f"{name} has {len(value)} rows for a batch of {batch_size}, so guidance can't be reused; {REMEDY}"
        )
    return value.chunk(2)[1]


def _uses_guidance(pipe: Any) -> bool | None:
    """Whether the pipeline uses guidance; None if it does not say."""
    scale = getattr(pipe, "_guidance_scale", None)
    if isinstance(scale, Tensor):  # Stable Video Diffusion's, one per frame
        return bool((scale > 1).any())
    guided: bool | None = getattr(pipe, "do_classifier_free_guidance", None)
    return guided


def _equal_parts(latents: Tensor, parts: int) -> bool:
    """Whether the latents are one tensor repeated that many times. Waits for the device, once per run."""
    if len(latents) % parts:
        return False
    first, *others = latents.chunk(parts)
    return all(torch.equal(first, other) for other in others)
