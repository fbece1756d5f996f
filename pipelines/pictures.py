"""Pictures that pipelines are given, before diffusers' own preprocessing."""

from __future__ import annotations

from typing import Any

from PIL import Image

from common.images import to_mask, to_rgb


def rgb(images: Any) -> Any:
    """PIL images, also in lists, in RGB, see `to_rgb`; those that are, arrays and tensors stay as they are.

    diffusers would take the four channels of RGBA for latents, and the numbers of a palette for grey.

    Raises:
        ValueError: values of no known range.
    """
    if isinstance(images, list):
        return [rgb(image) for image in images]
    return to_rgb(images) if isinstance(images, Image.Image) and images.mode != "RGB" else images


def masks(images: Any) -> Any:
    """PIL images, also in lists, as masks, see `to_mask`; those in RGB, arrays and tensors stay as they are.

    Raises:
        ValueError: values of no known range.
    """
    if isinstance(images, list):
        return [masks(image) for image in images]
    return to_mask(images) if isinstance(images, Image.Image) and images.mode != "RGB" else images
