"""What a table takes, before it is run: images, steps, MACs, disk, time, and what is missing."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from common.device import DTYPES
from common.timing import Clock
from unets import fork_of

from ..counting.layouts import MODELS, open_model
from ..counting.macs import count, unet_inputs
from .images import is_made
from .jobs import Job, Plan
from .macs import macs_of


@dataclass(frozen=True)
class Cost:
    """What sets of images take."""

    tmacs: float = 0.0
    bytes: float = 0.0  # on disk
    seconds: float = 0.0  # in the U-Net

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.tmacs + other.tmacs, self.bytes + other.bytes, self.seconds + other.seconds)


@functools.cache
def tmacs_a_second(unet: str, batch_size: int, device: torch.device, dtype: str) -> float:
    """How fast this device computes the U-Net with random weights: the faster of two calls after a warm-up."""
    model = open_model(unet)
    fork = fork_of(model.cls(**model.unet)).to(device, DTYPES[dtype]).eval()
    inputs = unet_inputs(fork, *model.size, batch=batch_size, tokens=model.tokens)
    clock = Clock(device)
    with torch.no_grad():
        fork(**inputs)
        clock.synchronise()
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            fork(**inputs)
            clock.synchronise()
            seconds.append(time.perf_counter() - start)
    meta = model.on_meta()
    counted = count(meta, unet_inputs(meta, *model.size, batch=batch_size, tokens=model.tokens))
    return counted.with_attention / 1e12 / min(seconds)


def tmacs_of(job: Job) -> float:
    """T MACs of all U-Net calls of a job, attention counted."""
    each = macs_of(job.run, job.model.unet, convention="with_attention")
    return job.num_images * each * (2 if job.model.guided else 1) / 1e3


def cost_of(job: Job, device: torch.device, dtype: str) -> Cost:
    """What a job takes here, from one measured step."""
    model, tmacs = job.model, tmacs_of(job)
    # On a CPU, a large model's batch would take minutes.
    batch = 1 if device.type == "cpu" and model.unet in MODELS else model.batch_size
    return Cost(tmacs, job.num_images * model.size**2 * 3, tmacs / tmacs_a_second(model.unet, batch, device, dtype))


def print_costs(plans: Iterable[Plan], device: torch.device, dtype: str) -> None:
    """A line for each row; a set that an earlier line has is not counted again."""
    seen: set[Path] = set()
    total = Cost()
    for plan in plans:
        print(f"\n{plan.table.heading}")
        if plan.table.kind == "schedules":
            print("   counted, nothing is made")
            continue
        print(f"{'row':>4} {'images':>7} {'steps':>10} {'TMACs':>12} {'disk':>10} {'time':>9}  ")
        for k, (row, job) in enumerate(zip(plan.table.rows, plan.jobs, strict=True), 1):
            if k not in plan.rows:
                continue
            if job is None:
                why = "of another method or another paper, not run" if row.run is None else "no model at this scale"
                print(f"{k:>4} {'–':>7} {'':>10} {'':>12} {'':>10} {'':>9}  {row.name}: {why}")
                continue
            made = "there" if is_made(job) else "as above" if job.out in seen else ""
            seen.add(job.out)
            cost = cost_of(job, device, dtype)
            if not made:
                total += cost
            steps = f"{job.run.num_full} of {job.run.steps}"
            print(
                f"{k:>4} {job.num_images:>7} {steps:>10} {cost.tmacs:>12,.1f} {_size(cost.bytes):>10} "
                f"{made or _duration(cost.seconds):>9}  {row.name}"
            )
            for file in job.missing:
                print(f"{'':>9}missing: {file}")
    print(
        f"\nTo be made: {total.tmacs:,.1f} TMACs, {_size(total.bytes)}, about {_duration(total.seconds)} in "
        f"the U-Net on {device} in {dtype}, from one measured step; decoding, scores and speed come on top."
    )


def _size(number: float) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"


def _duration(seconds: float) -> str:
    if seconds >= 2 * 86400:
        return f"{seconds / 86400:.1f} days"
    return f"{seconds / 3600:.1f} h" if seconds >= 7200 else f"{seconds / 60:.1f} min"
