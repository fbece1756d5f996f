"""The speed of a row: end-to-end calls, in turn with its baseline's, in one process."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace

import torch

from common.environment import versions
from common.timing import Clock, alternate, pairwise
from image_sets.batches import Batch

from .data import Settings
from .images import open_run
from .jobs import Job, Options, baseline_of, job_of
from .measured import Found, Measured, measured
from .sources import key_of, sources_of

WARM_UP = 1


def timed_job(job: Job, options: Options) -> Job:
    """The job that is timed for this one: two sets of prompts on one model share it."""
    if job.model.speed_of is None:
        return job
    same = job_of(replace(job.printed, model=job.model.speed_of), options)
    assert same is not None
    return same


def measure_speed(job: Job, options: Options) -> Measured | None:
    """Times the job and its baseline in turn, unless that is saved. None for a job without a baseline."""
    baseline = baseline_of(job, options, job.model.speed_over)
    if baseline is None:
        return None
    pair = [baseline] if job.name == baseline.name else [baseline, job]
    batch_size, device = options.speed_batch or job.model.speed_batch, options.device
    made_from = {
        "runs": {one.name: key_of(one.settings, sources_of(one.settings)) for one in pair}, "batch_size": batch_size,
        "repeats": options.repeats, "machine": versions(device),
    }  # fmt: skip

    def measure() -> Found:
        calls = [_call(one.settings, batch_size, device) for one in pair]
        alternate(calls, WARM_UP)
        seconds = alternate(calls, options.repeats)
        slow, fast = seconds[0], seconds[-1]
        ratio = pairwise(slow, fast)
        speeds = {
            "baseline_throughput": [batch_size / one for one in slow], "throughput": [batch_size / one for one in fast],
        }  # fmt: skip
        return Found(
            {"speedup": ratio["median"]} | {name: statistics.median(values) for name, values in speeds.items()},
            {"speedup": ratio["min"]} | {name: min(values) for name, values in speeds.items()},
            {"speedup": ratio["max"]} | {name: max(values) for name, values in speeds.items()},
            {"baseline_seconds": slow, "seconds": fast},
        )

    return measured(job.measured / "speed.json", made_from, measure, device)


def _call(settings: Settings, batch_size: int, device: torch.device) -> Callable[[], float]:
    run, clock = open_run(settings, device), Clock(device)

    def seconds() -> float:
        clock.synchronise()
        start = clock.mark()
        run.make(Batch.of(0, list(range(batch_size))))
        return clock.seconds(start, clock.mark())

    return seconds
