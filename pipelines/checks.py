"""Checks the arguments of a pipeline's call before anything is computed."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from common.numbers import MOST_PIXELS

LEAST = {  # minimum of the arguments that are whole numbers
    "num_inference_steps": 1,
    "num_images_per_prompt": 1,
    "num_videos_per_prompt": 1,
    "num_frames": 1,
    "video_length": 1,
    "decode_chunk_size": 1,
    "t0": 0,
    "t1": 0,
}
SIDES = ("height", "width")
LOWEST = {"eta": 0, "noise_aug_strength": 0, "fps": 1}  # minimum of other numbers

MAY_BE_NONE = (*SIDES, "num_frames", "decode_chunk_size", "denoising_start", "denoising_end")
MAY_BE_LISTS = ("controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end")  # one for each net


def check_numbers(*, timesteps: Any = None, **given: Any) -> None:
    """Checks arguments by name: whole numbers (`LEAST`), sides in pixels, or else finite numbers.

    If `timesteps` are given, the number of steps is ignored, as in diffusers.

    Raises:
        ValueError: the first invalid one, by name.
    """
    for name, value in given.items():
        if (value is None and name in MAY_BE_NONE) or (name == "num_inference_steps" and timesteps is not None):
            continue
        if name in SIDES:
            if not _is_whole(value) or value % 8 or not 8 <= value <= MOST_PIXELS:
                raise ValueError(
                    f"{name} is {value!r}; it must be a whole number divisible by 8, from 8 to {MOST_PIXELS}"
                )
        elif name in LEAST:
            if not _is_whole(value) or value < LEAST[name]:
                raise ValueError(f"{name} is {value!r}; it must be a whole number of at least {LEAST[name]}")
        elif not all(map(_is_finite, value if name in MAY_BE_LISTS and isinstance(value, list) else [value])):
            raise ValueError(f"{name} is {value!r}; it must be a finite number")
        elif name in LOWEST and value < LOWEST[name]:
            raise ValueError(f"{name} is {value!r}; it must be at least {LOWEST[name]}")


def check_noise(batch_size: int, generator: Any, latents: Any = None, shape: Sequence[int | None] = ()) -> None:
    """Checks the source of the noise: a generator, a list of one for each output, or latents of that shape.

    Args:
        shape: None in it is a side that is not known yet.

    Raises:
        ValueError: another number of generators, or latents of another shape or with a number that is not finite.
    """
    generators = generator if isinstance(generator, list) else [] if generator is None else [generator]
    if not all(isinstance(one, torch.Generator) for one in generators):
        raise ValueError(f"generator is of {type(generator).__name__}; it must be a torch.Generator or a list of them")
    if isinstance(generator, list) and len(generator) != batch_size:
        raise ValueError(
            f"generator is a list of {len(generator)}, but the call makes {batch_size}; give one generator for each, "
            "or a single one for all"
        )
    if latents is None:
        return
    if not isinstance(latents, Tensor):
        raise ValueError(f"latents are a {type(latents).__name__}; they must be a tensor")
    if latents.ndim != len(shape) or any(b not in (a, None) for a, b in zip(latents.shape, shape, strict=True)):
        wanted = ", ".join("?" if side is None else str(side) for side in shape)
        raise ValueError(f"latents are {tuple(latents.shape)}; they must be ({wanted})")
    if not latents.is_meta and not latents.isfinite().all():  # meta tensors have no values
        raise ValueError("latents hold a number that is not finite; make them again")


def for_each_generator(image: Tensor, generator: Any) -> Tensor:
    """Repeats one picture (1, C, H, W) for each generator in a list (B, C, H, W), since each encodes one.

    Latents are not encoded and stay unchanged.

    Raises:
        ValueError: several pictures, but not one for each generator.
    """
    if not isinstance(generator, list) or len(image) == len(generator) or image.shape[1] == 4:
        return image
    if len(image) != 1:
        raise ValueError(
            f"generator is a list of {len(generator)}, but image holds {len(image)}; give one picture, or one for each "
            "generator"
        )
    return image.repeat(len(generator), 1, 1, 1)


def _is_whole(value: Any) -> bool:
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except (TypeError, ValueError):
        return False
