"""The MACs of a run: of its full and retrieve steps."""

from __future__ import annotations

import functools
from typing import Literal

from ..counting.layouts import open_model
from ..counting.macs import Macs, branches_of, count_modules, unet_inputs
from .data import RowRun
from .jobs import Job


@functools.cache
def steps_of(unet: str, cache_branch_id: int) -> tuple[Macs, Macs]:
    """MACs of a full and a retrieve step of a U-Net, a published layout's name or a path, without guidance.

    A retrieve step leaves out the layers of all deeper branches and what lies below them.
    """
    full, below, branches = _counted(unet)
    left_out = [below, *branches[cache_branch_id + 1 :]]
    return full, Macs(*(whole - sum(part) for whole, *part in zip(full, *left_out, strict=True)))


@functools.cache
def _counted(unet: str) -> tuple[Macs, Macs, list[Macs]]:
    """MACs of a full step, of its middle block, and of the layers of each branch, counted in one call."""
    model = open_model(unet)
    fork = model.on_meta()
    macs = count_modules(fork, unet_inputs(fork, *model.size, tokens=model.tokens), model.exceptions)
    return macs[""], macs.get("mid_block", Macs(0, 0)), branches_of(fork, macs)


def macs_of(
    run: RowRun, unet: str, over: int | None = None, convention: Literal["paper", "with_attention"] = "paper"
) -> float:
    """G MACs of a run for one image without guidance: all of it, or divided by `over` steps, as tables do."""
    full, retrieve = (getattr(step, convention) / 1e9 for step in steps_of(unet, run.cache.cache_branch_id))
    return (run.num_full * full + (run.steps - run.num_full) * retrieve) / (over or 1)


def tmacs_of(job: Job) -> float:
    """T MACs of all U-Net calls of a job, attention counted."""
    if job.model.unet is None:
        return 0.0
    each = macs_of(job.run, job.model.unet, convention="with_attention")
    return job.num_images * each * (2 if job.model.guided else 1) / 1e3
