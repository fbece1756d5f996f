"""A batch of images: the source of their noise, and the conversion to uint8."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from common.command_line import RunError

ROUNDINGS = ("nearest", "truncate")


class Batch(NamedTuple):
    """Images that are made at once."""

    indices: list[int]
    generators: list[torch.Generator]  # one per image, so that its noise does not depend on the batch

    @classmethod
    def of(cls, seed: int, indices: Sequence[int], noise_period: int | None = None) -> Self:
        """The images with these indices in a set with that seed.

        With a period B, image k starts from the noise of image k modulo B, as in programs that seed their generator
        again before every batch of B.
        """
        return cls(list(indices), [image_generator(seed, k % noise_period if noise_period else k) for k in indices])


def image_generator(seed: int, index: int) -> torch.Generator:
    """The source of all of an image's noise. Sets with different seeds share none."""
    mixed = np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed))


def to_uint8(images: Tensor, indices: Sequence[int], rounding: str = "nearest") -> np.ndarray:
    """(B, 3, H, W) in [−1, 1] to uint8 (B, H, W, 3).

    Args:
        rounding: `nearest`; or `truncate`, which makes x in [0, 1] the integer part of 255x, in float32.

    Raises:
        RunError: a value is not finite.
    """
    for k, image in zip(indices, images, strict=True):
        if not image.isfinite().all():
            raise RunError(f"image {k} has non-finite values; try --dtype float32")
    if rounding == "truncate":
        images = ((images + 1) / 2).float()  # for float64 images this gives x back without rounding
        scaled = images * 255
    else:
        scaled = ((images.float() + 1) * 127.5).round()
    return scaled.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def digest(model: nn.Module) -> str:
    """Identifies weights, whatever file they came from: the first sixteen hexadecimal digits of their SHA-256."""
    sha = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        sha.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return sha.hexdigest()[:16]
