"""Sets of small random images, which no model makes."""

import os
import traceback
from pathlib import Path

import numpy as np
import torch

from image_sets.batches import Batch
from image_sets.generate import Run, generate
from image_sets.sets import ImageSet
from unets.cache.config import CacheConfig

SIDE, SETTINGS = 16, {"model": "fake", "seed": 0}
DISK_FULL = 7  # exit status of a forked child


class Interrupted(Exception):
    pass


def make(batch: Batch) -> torch.Tensor:
    return torch.stack([torch.rand(3, SIDE, SIDE, generator=g) * 2 - 1 for g in batch.generators])


def run(out: Path, num_images: int, batch_size: int, make=make, **changed) -> int:
    """What `generate` makes of small random images, labelled with their index."""
    return generate(run_of(out, SETTINGS | changed, make, labels_of=np.array), num_images, batch_size, quiet=True)


def run_of(out: Path, recorded: dict, make=make, **options) -> Run:
    """A run without a model: what makes its images needs none."""
    seed = recorded["seed"]
    return Run(ImageSet(out, recorded), None, CacheConfig(), lambda batch, cache: make(batch), seed, **options)


def arrays(out: Path) -> dict[str, np.ndarray]:
    with np.load(out / "samples.npz") as archive:
        return dict(archive)


def assert_same_set(ours: Path, theirs: Path) -> None:
    a, b = arrays(ours), arrays(theirs)
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[name], b[name]) for name in a)


def forked(work) -> int:
    """The id of a child process that does the work: all modules are loaded in it from the start."""
    if (pid := os.fork()) == 0:
        status = 1
        try:
            work()
            status = 0
        except OSError:
            status = DISK_FULL
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return pid
