"""The MACs of a run: those of its full and of its retrieve steps."""

from __future__ import annotations

import functools
from typing import Literal

from ..counting.layouts import open_model
from ..counting.macs import Macs, count_steps, unet_inputs
from .data import RowRun


@functools.cache
def steps_of(unet: str, cache_branch_id: int) -> tuple[Macs, Macs]:
    """MACs of a full and a retrieve step of a U-Net, a published layout's name or a path, without guidance."""
    model = open_model(unet)
    fork = model.on_meta()
    inputs = unet_inputs(fork, *model.size, tokens=model.tokens)
    return count_steps(fork, inputs, cache_branch_id, model.exceptions)


def macs_of(
    run: RowRun, unet: str, over: int | None = None, convention: Literal["paper", "with_attention"] = "paper"
) -> float:
    """G MACs of a run for one image without guidance: all of it, or divided by `over` steps, as tables do."""
    full, retrieve = (getattr(step, convention) / 1e9 for step in steps_of(unet, run.cache.cache_branch_id))
    return (run.num_full * full + (run.steps - run.num_full) * retrieve) / (over or 1)
