"""Our numbers for the rows of a table: counted, or read from the saved measurements. Nothing is run here."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from unets.cache.schedule import equation_7

from . import measured
from .data import Row, Schedule, Table, load_scale
from .jobs import Job, Options, Plan
from .macs import macs_of
from .measured import Measured
from .speed import timed_job

SPEEDS = ("throughput", "speedup")


@dataclass(frozen=True)
class Value:
    """A number of ours in a cell, with its 95 % interval, or for timings with minimum and maximum.

    `why` is the reason if there is no number to show.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    why: str | None = None


@dataclass(frozen=True)
class Result:
    """Our numbers for a row by column, as far as it was run, and the files they come from."""

    cells: Mapping[str, Value | str] = field(default_factory=dict)
    scores: Measured | None = None
    pairs: Measured | None = None
    speed: Measured | None = None

    def __getitem__(self, column: str) -> Value | str | None:
        return self.cells.get(column)

    def number(self, column: str) -> float | None:
        """The number of a cell, if it has one."""
        cell = self.cells.get(column)
        return cell.value if isinstance(cell, Value) and cell.why is None else None


def results_of(plan: Plan, options: Options, *, count_macs: bool = True) -> list[Result]:
    """Our numbers for each row of a table, as far as they exist. Counting MACs takes seconds, and can be skipped.

    Images/s are the baseline's (median of all its timings in this table) times the row's speed-up: nothing else makes
    rows comparable that were timed at different moments or on different machines.

    Raises:
        ValueError: a damaged file.
    """
    table = plan.table
    columns = set(table.columns) - (set() if count_macs else {"macs_g"})
    results = [_result(table, row, job, columns, options) for row, job in zip(table.rows, plan.jobs, strict=True)]
    if not table.is_timed:
        return results
    baselines: dict[str, list[float]] = {}
    for job, result in zip(plan.jobs, results, strict=True):
        if job is not None and result.speed is not None:
            baselines.setdefault(_baseline(job), []).append(_of(result.speed, "baseline_throughput"))
    return [
        _with_throughput(result, statistics.median(baselines[_baseline(job)]))
        if job is not None and result.speed is not None
        else result
        for job, result in zip(plan.jobs, results, strict=True)
    ]


def baseline_drift(plan: Plan, results: list[Result]) -> dict[str, float]:
    """For each baseline that several rows were timed against, its highest speed over its lowest."""
    found: dict[str, list[float]] = {}
    for job, result in zip(plan.jobs, results, strict=True):
        if job is not None and result.speed is not None:
            found.setdefault(_baseline(job), []).append(_of(result.speed, "baseline_throughput"))
    return {name: max(values) / min(values) for name, values in found.items() if len(values) > 1}


def _baseline(job: Job) -> str:
    """The model whose baseline a job is timed against."""
    return job.model.speed_over or job.model.speed_of or job.run.model


def _of(measured: Measured, name: str) -> float:
    value = measured.found.values[name]
    assert value is not None
    return value


def _with_throughput(result: Result, baseline: float) -> Result:
    speed = result.cells["speedup"]
    assert isinstance(speed, Value)
    value, low, high = (None if x is None else x * baseline for x in (speed.value, speed.low, speed.high))
    return Result({**result.cells, "throughput": Value(value, low, high)}, result.scores, result.pairs, result.speed)


def _result(table: Table, row: Row, job: Job | None, columns: Set[str], options: Options) -> Result:
    cells = dict[str, Value | str]()
    if row.schedule is not None:
        return Result(_schedule_cells(row.schedule))
    if row.run is None:
        return Result()
    printed = load_scale("paper").models.get(row.run.model)
    if "macs_g" in columns and printed is not None and printed.unet is not None:
        # for the published layout, which needs no weights
        cells["macs_g"] = Value(macs_of(row.run, printed.unet, table.macs_over))
    if job is None:
        return Result(cells)
    scores, pairs = (measured.read(job.measured / f"{name}.json") for name in ("scores", "pairs"))
    speed = measured.read(timed_job(job, options).measured / "speed.json") if columns & {*SPEEDS} else None
    for file in (scores, pairs):
        if file is not None:
            cells |= {name: _value(file, name) for name in file.found.values}
    if speed is not None:
        cells["speedup"] = _value(speed, "speedup")
    return Result(cells, scores, pairs, speed)


def _value(file: Measured, name: str) -> Value:
    found = file.found
    return Value(found.values[name], found.low.get(name), found.high.get(name), found.unreliable.get(name))


def _schedule_cells(schedule: Schedule) -> dict[str, Any]:
    """For Tables 9 and 10: the full steps from the printed parameters."""
    cache = schedule.cache
    assert cache.center is not None and cache.pow is not None
    steps = cache.full_steps(schedule.num_steps)
    printed = equation_7(schedule.num_steps, cache.cache_interval, pow=cache.pow, center=cache.center)
    return {
        "center": Value(cache.center), "pow": Value(cache.pow), "num_full": Value(len(steps)),
        "num_equation_7": Value(len(printed)), "full_steps": " ".join(map(str, steps)),
    }  # fmt: skip
