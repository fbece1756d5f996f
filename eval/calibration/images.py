"""A run's images by their indices, with any cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from image_sets.batches import Batch, to_uint8
from image_sets.generate import Run
from unets.cache.config import CacheConfig


@dataclass(frozen=True)
class ImageMaker:
    """Makes images of `run` in batches."""

    run: Run
    batch_size: int
    quiet: bool = False  # no progress bars

    def batches(self, indices: range, label: str) -> Iterator[Batch]:
        """The images of these indices, with a progress bar of that label."""
        starts = range(0, len(indices), self.batch_size)
        for k in tqdm(starts, desc=label, leave=False, disable=self.quiet):
            yield self.run.batch(indices[k : k + self.batch_size])

    def make(self, indices: range, cache: CacheConfig, label: str) -> np.ndarray:
        """Images uint8 (N, H, W, 3). Raises RunError if one has non-finite values."""
        made = [to_uint8(self.run.make(batch, cache), batch.indices) for batch in self.batches(indices, label)]
        return np.concatenate(made)
