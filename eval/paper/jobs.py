"""What a row of a table needs: the settings that its images are made with, where they go, what is missing for them.

Nothing is run here. Rows of equal settings, of one table or of several, have one set of images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import ddpm.sample
import ldm.sample
from unets.cache.config import CacheConfig

from ..generation import text
from .data import FidScore, Model, RowRun, Scale, Settings, Table
from .inputs import missing


@dataclass(frozen=True)
class Options:
    """Of the command line, what all rows share."""

    scale: Scale
    work: Path  # images of this scale, and their scores
    inputs: Path  # published weights, references
    device: torch.device
    num_images: int | None = None  # None: as many as the scale says
    dtype: str | None = None  # None: float32
    timed: bool = True
    speed_batch: int = 4  # images of a timed call
    repeats: int = 2  # timed calls of each row
    quiet: bool = False

    def place(self, path: str) -> str:
        """A path of scales.json, with its `{inputs}` and `{work}` filled in."""
        return path.replace("{inputs}", str(self.inputs)).replace("{work}", str(self.work))


@dataclass(frozen=True)
class Job:
    """The set of images of one row, or of several: equal settings have equal names."""

    name: str
    model: Model
    run: RowRun  # the row's at this scale
    settings: Settings
    num_images: int
    out: Path
    reference: Path | None  # of FID and its kin
    missing: tuple[str, ...]  # names of inputs
    missing_for_scores: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What is to be run of a table: for each row its job, or None where it has none or was not asked for."""

    table: Table
    rows: frozenset[int]  # those that were asked for, counted from 1
    jobs: tuple[Job | None, ...]


def plan(table: Table, rows: Sequence[int] | None, options: Options) -> Plan:
    """Plans these rows of a table, or all of them. Raises ValueError if there are not as many."""
    chosen = frozenset(rows or range(1, len(table.rows) + 1))
    if max(chosen) > len(table.rows):
        raise ValueError(f"--rows has {max(chosen)}, and {table.name} has {len(table.rows)} rows")
    jobs = (
        job_of(row.run, options) if row.run is not None and k in chosen else None for k, row in enumerate(table.rows, 1)
    )
    return Plan(table, chosen, tuple(jobs))


def job_of(run: RowRun, options: Options) -> Job | None:
    """The job of a row's run; None where this scale has no such model."""
    model = options.scale.models.get(run.model)
    if model is None:
        return None
    run = run.at(options.scale.name, model.steps_factor)
    num_images = options.num_images or model.num_images
    name = f"{run.model}-{run.slug}"
    if options.dtype is not None:
        name += f"-{options.dtype}"
    reference = Path(options.place(model.score.reference)) if isinstance(model.score, FidScore) else None
    lacking, lacking_for_scores = (missing(model.inputs, use, options.inputs) for use in ("images", "scores"))
    out = options.work / f"{name}-{num_images}"
    return Job(
        name,
        model,
        run,
        _settings(model.settings, run, options),
        num_images,
        out,
        reference,
        lacking,
        lacking_for_scores,
    )


def baseline_of(job: Job, options: Options, of: str | None = None) -> Job:
    """The job without a cache that this one is compared with, of the same model or of the one named."""
    name = of or job.run.model
    baseline = job_of(RowRun(name, options.scale.models[name].baseline_steps), options)
    assert baseline is not None
    return baseline


def _settings(own: Settings, run: RowRun, options: Options) -> Settings:
    """The model's own settings with those of the run."""
    dtype, place = options.dtype or own.dtype, options.place
    match own:
        case ddpm.sample.Settings():
            return replace(
                own, checkpoint=own.checkpoint and place(own.checkpoint), steps=run.steps, cache=_cache(run, 2),
                zero_cache=run.zero_cache, dtype=dtype,
            )  # fmt: skip
        case ldm.sample.Settings():
            return replace(
                own, model=own.model and place(own.model), steps=run.steps, cache=_cache(run, 0),
                zero_cache=run.zero_cache, dtype=dtype,
            )  # fmt: skip
        case text.Settings() if not run.zero_cache:
            return replace(own, prompts=place(own.prompts), steps=run.steps, cache=_cache(run, 1), dtype=dtype)
    raise ValueError(f"{run.model} cannot be run with zeros for the cached feature")


def _cache(run: RowRun, branch: int) -> CacheConfig:
    """The run's cache. One that retrieves nothing has the sampler's usual branch, as `settings.json` names one."""
    return run.cache if run.cache.cache_interval > 1 else replace(run.cache, cache_branch_id=branch)
