"""Makes sets of images in any number of processes; shared by the sampling scripts."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from filelock import Timeout
from torch import Tensor
from tqdm import tqdm

from common import numbers
from common.command_line import RunError, add_quiet_argument, is_out_of_memory
from common.device import add_device_arguments
from common.words import counted
from unets.cache.config import CacheConfig

from .batches import Batch, to_uint8
from .sets import ImageSet


class Busy(RunError):
    """Another process is making the set."""


@dataclass
class Run:
    """A sampling script's job with the model loaded: the set, and how its images are made."""

    image_set: ImageSet
    unet: Any
    cache: CacheConfig
    sample: Callable[[Batch, CacheConfig], Tensor]  # images (B, 3, H, W) in [−1, 1]
    seed: int
    labels_of: Callable[[Sequence[int]], np.ndarray] | None = None  # class labels, if they are saved
    rounding: str = "nearest"
    noise_period: int | None = None  # image k starts from the noise of image k modulo this

    def batch(self, indices: Sequence[int]) -> Batch:
        """The images of these indices."""
        return Batch.of(self.seed, indices, self.noise_period)

    def make(self, batch: Batch, cache: CacheConfig | None = None) -> Tensor:
        """Images (B, 3, H, W) in [−1, 1], with the run's own cache or another one."""
        return self.sample(batch, self.cache if cache is None else cache)


def add_set_arguments(parser: argparse.ArgumentParser, *, num_images: int | None = 64, batch_size: int = 32) -> None:
    """Options of the scripts that make large sets of images: number, batch size, seed, output."""
    group = parser.add_argument_group("set")
    group.add_argument(
        "--num-images", type=numbers.images, default=num_images, help="images in total; extends an existing set"
    )
    group.add_argument(
        "--batch-size", type=numbers.batch, default=batch_size, help="per process; does not change any image's noise"
    )
    group.add_argument("--seed", type=numbers.seed, default=0, help="image k's noise depends on the seed and k only")
    group.add_argument("--png", action="store_true", help="also write every image as a PNG")
    add_device_arguments(group, dtype="float32")
    group.add_argument("--out", type=Path, metavar="DIR", help="(default: outputs/<settings>)")
    add_quiet_argument(group)


def device_of_process(device: torch.device) -> torch.device:
    """The device of this process: with several processes on CUDA, each has its own GPU. Call this before `generate`."""
    state = PartialState(cpu=device.type == "cpu")
    return state.device if device.type == "cuda" and state.num_processes > 1 else device


def make_set(
    run: Run, num_images: int, batch_size: int, *, png: bool = False, quiet: bool = False,
    on_made: Callable[[int], object] | None = None,
) -> str:  # fmt: skip
    """Makes the missing images of the set; returns how many were made and how long it took. Raises as `generate`."""
    started = time.perf_counter()
    made = generate(run, num_images, batch_size, png=png, quiet=quiet, on_made=on_made)
    return f"{counted(made, 'image')} made in {time.perf_counter() - started:.1f} s"


def generate(
    run: Run, num_images: int, batch_size: int, *, png: bool = False, quiet: bool = False,
    on_made: Callable[[int], object] | None = None,
) -> int:  # fmt: skip
    """Makes the missing images of a set, together with the other processes of `accelerate launch` or torchrun.

    Args:
        on_made: called with the number of images of each batch that this process has made.

    Returns:
        How many images this process made.

    Raises:
        ValueError: the folder holds images of other settings.
        Busy: another process is making the set.
        RunError: an image has non-finite values.
    """
    state = PartialState(cpu=not torch.cuda.is_available())
    image_set, lock = run.image_set, None
    shared: list[Any] = [None, None]  # from the first process: what is missing, or an error
    if state.is_main_process:
        try:
            image_set.open()
            lock = image_set.lock()
            lock.acquire(blocking=False)
            shared = [image_set.missing(num_images), None]
        except ValueError as error:
            shared = [None, error]
        except Timeout:
            shared = [None, Busy(f"another process is making {image_set.out}; wait for it, or choose another --out")]
    missing, wrong = broadcast_object_list(shared) if state.num_processes > 1 else shared
    if wrong is not None:
        raise wrong
    try:
        return _make_missing(run, missing, num_images, batch_size, png, quiet, on_made)
    finally:
        if lock is not None:
            lock.release()


def _make_missing(
    run: Run, missing: list[range], num_images: int, batch_size: int, png: bool, quiet: bool,
    on_made: Callable[[int], object] | None,
) -> int:  # fmt: skip
    state, image_set = PartialState(), run.image_set
    batches = [list(gap[k : k + batch_size]) for gap in missing for k in range(0, len(gap), batch_size)]
    mine = batches[state.process_index :: state.num_processes]

    made, halved = 0, False
    with tqdm(
        total=sum(map(len, mine)), desc="images", unit="img", disable=quiet or not mine or not state.is_main_process
    ) as bar:
        while mine:
            indices = mine.pop(0)
            try:
                images = run.make(run.batch(indices))
            except RuntimeError as error:
                if not is_out_of_memory(error) or halved or len(indices) == 1:
                    raise
                halved, half = True, (len(indices) + 1) // 2
                tqdm.write(f"out of memory with a batch of {len(indices)}; continuing with {half}")
                mine = [part[k : k + half] for part in [indices, *mine] for k in range(0, len(part), half)]
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                continue
            labels = run.labels_of(indices) if run.labels_of else None
            image_set.write(indices, to_uint8(images, indices, run.rounding), labels)
            made += len(indices)
            bar.update(len(indices))
            if on_made is not None:
                on_made(len(indices))
    state.wait_for_everyone()
    if state.is_main_process:
        image_set.finish(num_images, png=png, quiet=quiet)
    state.wait_for_everyone()
    return made
