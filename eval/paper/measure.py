"""Measures rows whose images exist: scores, distances to the baseline, speed."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from common.command_line import RunError

from .images import is_made
from .jobs import Job, Options, Plan, baseline_of
from .progress import TableBar
from .scores import measure_pairs, measure_scores
from .speed import measure_speed, timed_job


def timed_jobs(plans: Iterable[Plan], options: Options) -> list[Job]:
    """The jobs to time for the requested rows, each once."""
    timed = {
        own.name: own
        for plan in plans
        if options.timed and plan.table.is_timed
        for job in plan.asked
        if not (own := timed_job(job, options)).missing
    }
    return list(timed.values())


def measure_all(plans: Iterable[Plan], options: Options, bar: TableBar) -> None:
    """Measures the requested rows, except what is saved already.

    Distances to a baseline need both sets. Of several processes, the one that finishes the second set finds the other,
    so distances are measured for all rows of the tables, requested or not, whose two sets exist.

    Raises:
        ValueError: a reference that can't be used, a damaged file or set.
    """
    plans = list(plans)
    asked = {job.name: job for plan in plans for job in plan.asked}
    near = {job.name: job for plan in plans for job in plan.jobs if job is not None}
    unscored: dict[str, list[str]] = {}
    for job in asked.values():
        if is_made(job) and not job.missing_for_scores:
            bar.begins("scores", job)
            try:
                measure_scores(job, options)
            except RunError as error:  # a scorer that is not available only costs its own columns
                unscored.setdefault(str(error), []).append(job.name)
        bar.advance("scores", job)
    for job in near.values():
        baseline = baseline_of(job, options)
        if baseline is not None and baseline.name != job.name and is_made(job) and is_made(baseline):
            measure_pairs(job, baseline, options)
    for job in timed_jobs(plans, options):
        bar.begins("speed", job)
        measure_speed(job, options)
        bar.advance("speed", job)
    for reason, names in unscored.items():
        print(f"warning: {', '.join(names)}: no scores: {reason}", file=sys.stderr)
