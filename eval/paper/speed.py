"""The speed of a row: whole calls, in turn with its baseline's. Kept in a file of `speed/` beside the images."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch

from common.timing import Clock, alternate, pairwise
from image_sets.batches import Batch

from . import stored
from .data import RowRun, Settings
from .images import open_run
from .jobs import Job, Options, baseline_of, job_of

WARM_UP = 1


@dataclass(frozen=True)
class Speed:
    """Of a run, against that of its baseline."""

    throughput: float  # images/s
    speedup: float


def speed_of(run: RowRun, job: Job, options: Options) -> Speed:
    """The speed of a row's run, whose job this is; two sets of prompts on one model share it."""
    same = job_of(replace(run, model=job.model.speed_of or run.model), options)
    assert same is not None
    return speed(same, baseline_of(same, options, same.model.speed_over), options)


def speed(job: Job, baseline: Job, options: Options) -> Speed:
    """Measures both in turn, in this process, unless that is in its file."""
    alone = job.name == baseline.name
    file = options.work / "speed" / f"{job.name if alone else f'{job.name}-over-{baseline.name}'}.json"
    batch_size, device = options.speed_batch, options.device
    asked = {
        "settings": [asdict(one.settings) for one in (job, baseline)],
        "batch_size": batch_size, "repeats": options.repeats, "device": str(device),
    }  # fmt: skip
    found = stored.read(file, asked)
    if found is None:
        calls = [_call(one.settings, batch_size, device) for one in ([baseline] if alone else [baseline, job])]
        alternate(calls, WARM_UP)
        *first, seconds = alternate(calls, options.repeats)
        ratio = pairwise(first[0] if first else seconds, seconds)
        found = {
            "throughput": batch_size / statistics.median(seconds),
            "speedup": ratio["median"], "least_speedup": ratio["min"], "greatest_speedup": ratio["max"],
        }  # fmt: skip
        stored.write(file, asked, found, device)
    throughput, speedup = found["throughput"], found["speedup"]
    assert throughput is not None and speedup is not None
    return Speed(throughput, speedup)


def _call(settings: Settings, batch_size: int, device: torch.device) -> Callable[[], float]:
    run, clock = open_run(settings, device), Clock(device)

    def seconds() -> float:
        clock.synchronise()
        start = clock.mark()
        run.make(Batch.of(0, list(range(batch_size))))
        return clock.seconds(start, clock.mark())

    return seconds
