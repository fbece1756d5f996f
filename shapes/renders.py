"""Sets of new pictures by the renderer, as a model without mistakes would make them.

Their scores are the best that the tables of the shipped models can reach: the FID of real pictures is not 0, nor is
their CLIP Score 100.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from image_sets.batches import Batch
from image_sets.generate import Run
from image_sets.sets import ImageSet
from unets.cache.config import CacheConfig

from .draw import pictures_like
from .scenes import held_out_scene, render


@dataclass(frozen=True)
class Settings:
    """Which pictures: like the training pictures of the shipped stand-in for `like`, or of held-out captions."""

    like: str  # ldm4 or ddpm-cifar10; or captions
    seed: int = 0


def prepare(settings: Settings, out: Path | None = None) -> Run:
    """A run that draws; it has no U-Net and takes no cache."""
    name = f"renders-{settings.like}-seed{settings.seed}"
    image_set = ImageSet(out or Path("outputs") / name, {"renders": settings.like, "seed": settings.seed})

    def draw(batch: Batch, _: CacheConfig) -> Tensor:
        return torch.cat([_picture(settings.like, settings.seed, k) for k in batch.indices])

    return Run(image_set, None, CacheConfig(), draw, settings.seed)


def _picture(like: str, seed: int, index: int) -> Tensor:
    """Picture `index` of the set (1, 3, H, W) in [−1, 1]."""
    if like != "captions":
        return pictures_like(like, 1, RENDERS, seed, index)
    image, _ = render(held_out_scene(index), np.random.default_rng((RENDERS, seed, index)))
    return torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1


RENDERS = 23  # the seeds begin with this: used neither in training nor for references
