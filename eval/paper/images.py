"""The images of a row: made by the sampler of its model, unless they are there."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from accelerate import PartialState

import ddpm.sample
import ldm.sample
from image_sets.generate import Run, make_set
from image_sets.reading import count_images

from ..generation import text
from ..generation.prompts import open_prompts
from .data import Settings
from .jobs import Job


def is_made(job: Job) -> bool:
    """Whether the set of images is there in full."""
    samples = job.out / "samples.npz"
    if not samples.is_file() or count_images(samples) < job.num_images:
        return False
    return not isinstance(job.settings, text.Settings) or (job.out / "prompts.txt").is_file()


def make_images(job: Job, batch_size: int, device: torch.device, quiet: bool) -> str:
    """Makes the set, together with the other processes that were started with this one; says what this one made.

    Raises:
        ValueError: naming a setting that is wrong, or that the folder holds something else.
        RunError: an image holds values that are not finite; or prompts that are to be downloaded and can't be.
    """
    settings, num_images = job.settings, job.num_images
    if not isinstance(settings, text.Settings):
        run = prepare(settings, device=device, out=job.out, quiet=quiet)
        made = make_set(run, num_images, batch_size, quiet=quiet)
        return f"{made}; {num_images} and their overview in {job.out}"
    prompts = open_prompts(settings.prompts, quiet=quiet)
    prompts.first(num_images)  # there must be as many
    run = prepare(settings, device=device, out=job.out, quiet=quiet)
    made = make_set(run, num_images, batch_size, quiet=quiet)
    if PartialState().is_main_process:
        text.write_prompts(job.out, prompts.first(count_images(run.image_set.samples)))  # a larger set may be there
    return f"{made}; {num_images}, their prompts and overview in {job.out}"


def prepare(settings: Settings, *, device: torch.device, out: Path | None = None, quiet: bool = False) -> Run:
    """Loads the model of these settings; what is made with it goes to `out`. Raises as the samplers' own."""
    match settings:
        case ddpm.sample.Settings():
            return ddpm.sample.prepare(settings, device=device, out=out, quiet=quiet)
        case ldm.sample.Settings():
            return ldm.sample.prepare(settings, device=device, out=out, quiet=quiet)
        case text.Settings():
            return text.prepare(settings, device=device, out=out, quiet=quiet)


@functools.lru_cache(maxsize=2)  # a baseline and what is compared with it
def open_run(settings: Settings, device: torch.device) -> Run:
    """The model of these settings, loaded, for images that are not kept."""
    return prepare(settings, device=device, quiet=True)
