"""What a table takes, before it is run: images, steps, operations, disk, time, and what is missing."""

from __future__ import annotations

import functools
import time
from typing import Any

import torch

from common.device import DTYPES
from common.timing import Clock
from unets import fork_of

from ..counting.layouts import MODELS, open_model
from ..counting.macs import count, unet_inputs
from .results import is_made
from .rows import ROOT, cost, num_full


@functools.cache
def tmacs_a_second(unet: str, batch_size: int, device: torch.device, dtype: str) -> float:
    """How fast this device computes the U-Net with random weights: the faster of two calls after a warm-up."""
    model = open_model(str(ROOT / unet) if "/" in unet else unet)
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


def print_plan(tables: dict[str, Any], device: torch.device, dtype: str) -> None:
    """A line for each row; a set that an earlier line has is not counted again."""
    seen = set()
    total = {"tmacs": 0.0, "bytes": 0.0, "seconds": 0.0}
    for table in tables.values():
        print(f"\n{table['heading']}")
        if table["kind"] == "schedules":
            print("   counted, nothing is made")
            continue
        print(f"{'row':>4} {'images':>7} {'steps':>10} {'TMACs':>12} {'disk':>10} {'time':>9}  ")
        for k, (row, job) in enumerate(zip(table["rows"], table["jobs"], strict=True), 1):
            if k not in table["chosen"]:
                continue
            if job is None:
                why = "no model at this scale" if "run" in row else "of another method or another paper, not run"
                print(f"{k:>4} {'–':>7} {'':>10} {'':>12} {'':>10} {'':>9}  {row['name']}: {why}")
                continue
            made = "there" if is_made(job) else "as above" if job.out in seen else ""
            seen.add(job.out)
            takes = cost(job)
            # On a CPU, a large model's batch would take minutes.
            batch = 1 if device.type == "cpu" and job.model["unet"] in MODELS else job.model["batch_size"]
            takes["seconds"] = takes["tmacs"] / tmacs_a_second(job.model["unet"], batch, device, dtype)
            if not made:
                total = {name: value + takes[name] for name, value in total.items()}
            steps = f"{num_full(job.run)} of {job.run['steps']}"
            print(
                f"{k:>4} {job.num_images:>7} {steps:>10} {takes['tmacs']:>12,.1f} {_size(takes['bytes']):>10} "
                f"{made or _duration(takes['seconds']):>9}  {row['name']}"
            )
            for text in job.missing:
                print(f"{'':>9}missing: {text}")
    print(
        f"\nTo be made: {total['tmacs']:,.1f} TMACs, {_size(total['bytes'])}, about {_duration(total['seconds'])} in "
        f"the U-Net on {device} in {dtype}, from one measured step; decoding, scores and speed come on top."
    )


def _size(number: float) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"


def _duration(seconds: float) -> str:
    if seconds >= 2 * 86400:
        return f"{seconds / 86400:.1f} days"
    return f"{seconds / 3600:.1f} h" if seconds >= 7200 else f"{seconds / 60:.1f} min"
