"""The images of rows: made by the sampler of their model, unless they exist."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

import ddpm.sample
import ldm.sample
import shapes.renders
from image_sets.generate import Busy, Run, make_set
from image_sets.reading import count_images
from image_sets.sets import read_settings, samples_digest

from ..generation import text
from ..generation.prompts import open_prompts
from .data import Settings
from .jobs import Job, Options
from .progress import TableBar

BUSY_WAIT = 10.0  # seconds between checks of a set that another process is making


def is_made(job: Job) -> bool:
    """Whether the set of images is complete.

    Raises:
        ValueError: the folder is something else: missing or damaged settings, or images that were not made there.
    """
    if not job.may_be_made or not job.out.is_dir():
        return False
    samples = job.out / "samples.npz"
    if not samples.is_file():
        return False
    read_settings(job.out)
    if samples_digest(job.out) is None or count_images(samples) < job.num_images:
        return False
    return prompts_of(job.settings) is None or (job.out / "prompts.txt").is_file()


def make_all(jobs: Sequence[Job], batch_size: int | None, options: Options, bar: TableBar) -> int:
    """Makes the missing sets, together with the other processes that were started with this one.

    A set that another launch is making, on this or another machine, is left to it; if that one stops before the set is
    complete, it is resumed here.

    Returns:
        How many sets were made here.

    Raises:
        As `make_images`.
    """
    state, made = PartialState(), 0
    pending = _agreed([k for k, job in enumerate(jobs) if not is_made(job)] if state.is_main_process else None)
    total, waiting = len(pending), False
    while pending:
        busy: list[int] = []
        for k in pending:
            if state.is_main_process and not waiting:
                bar.say(f"{made + 1} of {total}: {jobs[k].out.name}")
            try:
                bar.say(make_images(jobs[k], batch_size or jobs[k].model.batch_size, options, bar))
                made += 1
            except Busy:
                busy.append(k)
        if busy and state.is_main_process:
            if not waiting:
                bar.say(f"waiting for another process, which is making {', '.join(jobs[k].out.name for k in busy)}")
            time.sleep(BUSY_WAIT)
            busy = [k for k in busy if not is_made(jobs[k])]
        pending, waiting = _agreed(busy), True
    return made


def make_images(job: Job, batch_size: int, options: Options, bar: TableBar) -> str:
    """Makes the set, and returns a line about it.

    Raises:
        ValueError: naming a setting that is wrong, or that the folder holds something else.
        Busy: another process is making it.
        RunError: an image has non-finite values, or the prompts can't be downloaded.
    """
    settings, num_images, prompts = job.settings, job.num_images, None
    if (source := prompts_of(settings)) is not None:
        prompts = open_prompts(source, quiet=options.quiet)
        prompts.first(num_images)  # raises if there are not as many
    bar.begins("images", job)
    run = prepare(settings, device=options.device, out=job.out, quiet=True)
    processes = PartialState().num_processes  # each of which makes that many
    made = make_set(
        run, num_images, batch_size, quiet=True,
        on_made=lambda number: bar.advance("images", job, number * processes / num_images),
    )  # fmt: skip
    if prompts is not None and PartialState().is_main_process:
        text.write_prompts(job.out, prompts.first(count_images(run.image_set.samples)))  # a larger set may exist
    return f"{made} in {job.out}"


def prompts_of(settings: Settings) -> str | None:
    """The set of prompts of images with these settings, if any."""
    match settings:
        case text.Settings():
            return settings.prompts
        case shapes.renders.Settings(like="captions"):
            return "shapes"
    return None


def prepare(settings: Settings, *, device: torch.device, out: Path | None = None, quiet: bool = False) -> Run:
    """Loads the model of these settings; its images go to `out`. Raises as the samplers' own."""
    match settings:
        case ddpm.sample.Settings():
            return ddpm.sample.prepare(settings, device=device, out=out, quiet=quiet)
        case ldm.sample.Settings():
            return ldm.sample.prepare(settings, device=device, out=out, quiet=quiet)
        case text.Settings():
            return text.prepare(settings, device=device, out=out, quiet=quiet)
        case shapes.renders.Settings():
            return shapes.renders.prepare(settings, out)


@functools.lru_cache(maxsize=2)  # a baseline and the run compared with it
def open_run(settings: Settings, device: torch.device) -> Run:
    """The model of these settings, loaded, for images that are not saved."""
    return prepare(settings, device=device, quiet=True)


def _agreed(value: Any) -> Any:
    """The first process's value, in all processes."""
    return broadcast_object_list([value])[0] if PartialState().num_processes > 1 else value
