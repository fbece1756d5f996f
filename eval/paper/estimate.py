"""Costs of tables before they are run: missing inputs, and images, TMACs, disk and hours of each row.

Hours are for a named GPU, or for this machine. The paper prints the images/s of nearly every run on one RTX 2080: this
is the measured figure, from which other GPUs are estimated by the ratio of their peak rates.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from common.device import DTYPES
from common.timing import Clock
from unets import fork_of

from ..counting.layouts import open_model
from ..counting.macs import count, unet_inputs
from .data import FOLDER, TABLES, Row, RowRun, load_table
from .images import is_made
from .inputs import remedies
from .jobs import Job, Options, Plan
from .macs import macs_of, tmacs_of

GPUS = json.loads((FOLDER / "gpus.json").read_text(encoding="utf-8"))  # TFLOPS at peak
MEASURED_GPU = "rtx2080"  # the paper's
HERE = "here"


@dataclass(frozen=True)
class Cost:
    """The cost of sets of images."""

    images: int = 0
    tmacs: float = 0.0
    bytes: float = 0.0  # on disk
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.images + other.images, self.tmacs + other.tmacs, self.bytes + other.bytes, self.seconds + other.seconds
        )


def cost_of(job: Job, gpu: str, options: Options) -> Cost:
    """The cost of a job on a GPU of `GPUS`, or here."""
    tmacs = tmacs_of(job)
    if job.model.unet is None:
        seconds = 0.0
    elif gpu == HERE:
        dtype = options.dtype or _dtype_of(job)
        seconds = tmacs / tmacs_a_second(job.model.unet, job.model.batch_size, options.device, dtype)
    else:
        seconds = job.num_images / (printed_throughput(job) * _faster(gpu, options.dtype or _dtype_of(job)))
    return Cost(job.num_images, tmacs, job.num_images * job.model.size**2 * 3, seconds)


def printed_throughput(job: Job) -> float:
    """Images/s that the paper prints for this run, or else those of its baseline, scaled by MACs."""
    rows, unet = _printed_rows(job.printed.model), job.model.unet
    if (printed := rows.get(job.printed.slug)) is not None:
        return printed
    assert unet is not None
    baseline = RowRun(job.printed.model, job.model.baseline_steps)
    whole, own = (macs_of(run, unet, convention="with_attention") for run in (baseline, job.printed))
    return rows[baseline.slug] * whole / own


@functools.cache
def _printed_rows(model: str) -> dict[str, float]:
    """Printed images/s of the runs of a model, by their slug."""
    rows: list[Row] = [row for name in TABLES for row in load_table(name).rows]
    return {
        row.run.slug: float(row.paper["throughput"])
        for row in rows
        if row.run is not None and row.run.model == model and "throughput" in row.paper
    }


def _faster(gpu: str, dtype: str) -> float:
    kind = "float32" if dtype == "float32" else "float16"
    return GPUS[gpu][kind] / GPUS[MEASURED_GPU][kind]


def _dtype_of(job: Job) -> str:
    return getattr(job.settings, "dtype", "float32")


@functools.cache
def tmacs_a_second(unet: str, batch_size: int, device: torch.device, dtype: str) -> float:
    """This device's rate for the U-Net with random weights: the faster of two calls after a warm-up."""
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


def print_costs(plans: Sequence[Plan], gpu: str, options: Options) -> None:
    """Prints missing inputs, then a line for each row and sums; sets shared by rows are counted once."""
    jobs = {job.name: job for plan in plans for job in plan.asked}
    _print_missing(jobs.values(), options.inputs)
    seen: set[str] = set()
    total = Cost()
    for plan in plans:
        total += _print_table(plan, gpu, options, seen)
    print(f"\nTo be made: {_line(total)} on {_named(gpu, options)}; {_how(gpu)}. Scores and speed are not included.")


def _print_missing(jobs: Iterable[Job], inputs_dir: Path) -> None:
    missing = sorted({name for job in jobs for name in (*job.missing, *job.missing_for_scores)})
    print(f"Missing: {len(missing)}" if missing else "Nothing is missing.")
    for text in remedies(missing, inputs_dir):
        print(f"  {text}")


def _print_table(plan: Plan, gpu: str, options: Options, seen: set[str]) -> Cost:
    total = Cost()
    print(f"\n{plan.table.heading}")
    if plan.table.kind == "schedules":
        print("   counted, nothing is made")
        return total
    print(f"{'row':>4} {'images':>7} {'full steps':>11} {'TMACs':>12} {'disk':>10} {'time':>10}  ")
    for k, (row, job) in enumerate(zip(plan.table.rows, plan.jobs, strict=True), 1):
        if k not in plan.rows or row.run is None:
            continue
        if job is None:
            print(f"{k:>4} {'–':>7} {'':>11} {'':>12} {'':>10} {'':>10}  {row.name}: no model at this scale")
            continue
        state = "made" if is_made(job) else "as above" if job.name in seen else ""
        cost = cost_of(job, gpu, options)
        if not state:
            total += cost
        seen.add(job.name)
        steps = f"{job.run.num_full} of {job.run.steps}" if job.run.steps else "–"
        print(
            f"{k:>4} {job.num_images:>7} {steps:>11} {cost.tmacs:>12,.1f} {_size(cost.bytes):>10} "
            f"{state or _duration(cost.seconds):>10}  {row.name}"
        )
    print(f"     to be made: {_line(total)}")
    return total


def _line(cost: Cost) -> str:
    images = f"{cost.images:,} image{'s' * (cost.images != 1)}"
    return f"{images}, {cost.tmacs:,.1f} TMACs, {_size(cost.bytes)}, {_duration(cost.seconds)}"


def _named(gpu: str, options: Options) -> str:
    return f"{options.device}, here" if gpu == HERE else f"one {gpu}"


def _how(gpu: str) -> str:
    if gpu == HERE:
        return "from one measured step of each U-Net, without decoding"
    if gpu == MEASURED_GPU:
        return "from the images/s that the paper prints"
    return (
        f"from the images/s that the paper prints for an RTX 2080 and the ratio of peak rates ({GPUS[gpu]['source']}): "
        "expect a factor of two"
    )


def _size(number: float) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"


def _duration(seconds: float) -> str:
    if seconds >= 2 * 86400:
        return f"{seconds / 86400:.1f} days"
    return f"{seconds / 3600:.1f} h" if seconds >= 7200 else f"{seconds / 60:.1f} min"
