"""MACs of whole runs with any cache, from just the configuration of a U-Net."""

from __future__ import annotations

from typing import Any

import torch

from unets.cache.config import CacheConfig
from unets.cache.run import CacheRun

from .macs import NONE, Exceptions, Macs, count_call

Counted = dict[tuple[Any, ...], tuple[Any, Macs]]
"""By kind of step, the fork's output and its MACs."""


def count_run(
    fork: Any,
    inputs: dict[str, Any],
    config: CacheConfig,
    num_calls: int,
    *,
    num_steps: int | None = None,
    guided: bool = False,
    exceptions: Exceptions = NONE,
    counted: Counted | None = None,
) -> list[Macs]:
    """MACs of each U-Net call in a run, 0 for skipped steps.

    Args:
        fork: on the meta device (`layouts.Model.on_meta`).
        inputs: of a call, for all rows: with guidance, both halves.
        num_calls, num_steps: as for `CacheRun`; by default as many steps as calls.
        counted: kinds of steps counted before, with the same fork, inputs and exceptions; those of this run are added.

    Raises:
        ValueError: as `CacheRun`.
    """
    cache = CacheRun(config, fork, num_steps or num_calls, num_calls)
    inputs = {name: _on_meta(value) for name, value in inputs.items()}
    rows = len(inputs["sample"]) // (2 if guided else 1)
    counted = {} if counted is None else counted
    run = []
    for i in range(num_calls):
        step = cache.plan(i, rows, guided)
        if step.skips:
            run.append(Macs(0, 0))
            cache.take(step, None)
            continue
        call = {name: _rows(step, value) for name, value in inputs.items()} | step.unet_arguments
        kind = (step.cached is None, step.branch, step.keep_branch, step.guidance_delta is None, step.reuse_attention,
                call.get("cached_attention") is None)  # fmt: skip
        if kind not in counted:  # later steps only need the shape of the output
            counted[kind] = count_call(fork, call, exceptions)
        output, macs = counted[kind]
        run.append(macs)
        cache.take(step, output)
    return run


def speed_up(run: list[Macs]) -> float:
    """The reduction of MACs, attention's matrix products included, against a run of full steps."""
    each = [macs.with_attention for macs in run]
    return len(each) * each[0] / sum(each)


def _rows(step: Any, value: Any) -> Any:
    return step.select(value) if isinstance(value, dict) or (torch.is_tensor(value) and value.ndim) else value


def _on_meta(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _on_meta(one) for name, one in value.items()}
    return value.to("meta") if torch.is_tensor(value) else value
