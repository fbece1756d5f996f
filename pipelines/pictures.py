"""Conversion of input pictures, before diffusers' own preprocessing."""

from __future__ import annotations

from typing import Any

from PIL import Image

from common.images import to_mask, to_rgb


def rgb(images: Any) -> Any:
    """Converts PIL images, also in lists, to RGB (`to_rgb`); RGB images, arrays and tensors are unchanged.

    diffusers would take the four channels of RGBA for latents, and palette indices for grey values.

    Raises:
        ValueError: values of unknown range.
    """
    if isinstance(images, list):
        return [rgb(image) for image in images]
    return to_rgb(images) if isinstance(images, Image.Image) and images.mode != "RGB" else images


def masks(images: Any) -> Any:
    """Converts PIL images, also in lists, to masks (`to_mask`); RGB images, arrays and tensors are unchanged.

    Raises:
        ValueError: values of unknown range.
    """
    if isinstance(images, list):
        return [masks(image) for image in images]
    return to_mask(images) if isinstance(images, Image.Image) and images.mode != "RGB" else images
