"""Our numbers for the rows of a table."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tqdm import tqdm

from unets.cache.schedule import equation_7

from .data import Row, Schedule, Table, load_scale
from .jobs import Job, Options, Plan, baseline_of
from .macs import macs_of
from .scores import median_psnr, scores
from .speed import speed_of

Number = float | int | str | None


@dataclass(frozen=True)
class Result:
    """Our numbers for a row, as far as it was run; None is what there is not.

    A field is a column of the tables; only `inception_score` has another name there, as `is` is a word of Python's.
    """

    macs_g: float | None = None
    throughput: float | None = None  # images/s
    speedup: float | None = None
    fid: float | None = None
    sfid: float | None = None
    inception_score: float | None = None
    precision: float | None = None  # 0 to 1, as recall
    recall: float | None = None
    clip_score: float | None = None
    psnr: float | None = None  # dB
    center: int | None = None
    pow: float | None = None
    num_full: int | None = None
    num_equation_7: int | None = None
    full_steps: str | None = None  # such as "0 5 10"

    def __getitem__(self, column: str) -> Number:
        return getattr(self, "inception_score" if column == "is" else column)


def results_of(plan: Plan, options: Options) -> list[Result]:
    """Our numbers for each row of a table, as far as it can be run; scores and speeds from their files, if there."""
    table = plan.table
    bar = tqdm(table.rows, desc=table.heading[:9], disable=options.quiet or table.kind == "schedules")
    return [_result(table, row, job, options) for row, job in zip(bar, plan.jobs, strict=True)]


def _result(table: Table, row: Row, job: Job | None, options: Options) -> Result:
    if row.schedule is not None:
        return _schedule_result(row.schedule)
    result = Result()
    if row.run is None:
        return result
    if "macs_g" in table.columns:  # of the published layout, which needs no weights
        unet = load_scale("paper").models[row.run.model].unet
        result = replace(result, macs_g=macs_of(row.run, unet, table.macs_over))
    if job is None or job.missing:
        return result
    found = scores(job, options)
    result = replace(
        result, fid=found.get("fid"), sfid=found.get("sfid"), inception_score=found.get("is"),
        precision=found.get("precision"), recall=found.get("recall"), clip_score=found.get("clip_score"),
        psnr=median_psnr(job, baseline_of(job, options)),
    )  # fmt: skip
    if "throughput" in table.columns and options.timed:
        speed = speed_of(row.run, job, options)
        result = replace(result, throughput=speed.throughput, speedup=speed.speedup)
    return result


def _schedule_result(schedule: Schedule) -> Result:
    """Of Tables 9 and 10: the full steps that the printed parameters give."""
    cache = schedule.cache
    assert cache.center is not None and cache.pow is not None
    steps = cache.full_steps(schedule.num_steps)
    printed = equation_7(schedule.num_steps, cache.cache_interval, pow=cache.pow, center=cache.center)
    return Result(
        center=cache.center, pow=cache.pow, num_full=len(steps), num_equation_7=len(printed),
        full_steps=" ".join(map(str, steps)),
    )  # fmt: skip
