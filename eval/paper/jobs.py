"""What a row of a table needs: the settings of its images, where they go, and missing inputs.

Nothing is run here. Rows with equal settings, in one table or several, share a set of images.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

import ddpm.sample
import ldm.sample
import shapes.renders
from common.words import counted
from unets.cache.config import CacheConfig

from ..generation import text
from .data import FidScore, Model, RowRun, Scale, Settings, Table
from .inputs import missing
from .sources import key_of, sources_of

ORIGINAL_SEED, ORIGINAL_BATCH = 42, 16  # of the released generate.py, as called in its README


@dataclass(frozen=True)
class Options:
    """The command line's options that all rows share."""

    scale: Scale
    work: Path  # images of this scale
    inputs: Path  # published weights, references
    out: Path  # measurements and tables
    device: torch.device
    num_images: int | None = None  # None: as many the scale's
    dtype: str | None = None  # None: the scale's
    original_seeds: bool = False  # noise as the released script for Stable Diffusion has it
    timed: bool = True
    speed_batch: int | None = None  # images per timed call; None: the scale's
    repeats: int = 3  # timed calls per row
    quiet: bool = False

    def place(self, path: str) -> str:
        """A path of scales.json, with its `{inputs}` and `{work}` filled in."""
        return path.replace("{inputs}", str(self.inputs)).replace("{work}", str(self.work))


@dataclass(frozen=True)
class Job:
    """The set of images of one row, or of several: equal settings have equal names."""

    name: str  # model, steps and cache, as in the results
    model: Model
    printed: RowRun  # the row's
    run: RowRun  # the same at this scale
    settings: Settings
    num_images: int
    work: Path
    measured: Path  # folder of what is measured of it
    reference: Path | None  # of FID and its kin
    missing: tuple[str, ...]  # names of inputs
    missing_for_scores: tuple[str, ...]

    @cached_property
    def out(self) -> Path:
        """The set's folder, which depends on settings and weights, so that they can't be mixed up."""
        key = key_of(self.settings, sources_of(self.settings))
        return self.work / f"{self.name}-{self.num_images}-{key}"

    @property
    def may_be_made(self) -> bool:
        """Whether any set of this name exists, without hashing the weights, which can be large."""
        return any(self.work.glob(f"{glob.escape(self.name)}-{self.num_images}-*"))


@dataclass(frozen=True)
class Plan:
    """The plan for a table: for each row its job, or None."""

    table: Table
    rows: frozenset[int]  # the requested ones, counted from 1
    jobs: tuple[Job | None, ...]

    @property
    def asked(self) -> list[Job]:
        """The jobs of the rows that were requested."""
        return [job for k, job in enumerate(self.jobs, 1) if job is not None and k in self.rows]


def plan(table: Table, rows: Sequence[int] | None, options: Options) -> Plan:
    """Plans these rows of a table, or all of them. Raises ValueError if the table has fewer."""
    table = table.at(options.scale)
    chosen = frozenset(rows or range(1, len(table.rows) + 1))
    if max(chosen) > len(table.rows):
        raise ValueError(f"--rows has {max(chosen)}, and {table.name} has {counted(len(table.rows), 'row')}")
    return Plan(table, chosen, tuple(None if row.run is None else job_of(row.run, options) for row in table.rows))


def job_of(run: RowRun, options: Options) -> Job | None:
    """The job of a row's run; None if this scale has no such model, or the row is for another scale."""
    model = options.scale.models.get(run.model)
    if model is None or run.only not in (None, options.scale.name):
        return None
    printed, run = run, run.at(options.scale.name, model.steps_factor)
    name = f"{run.model}-{run.slug}".removesuffix("-")
    return Job(
        name, model, printed, run, _settings(model.settings, run, options), options.num_images or model.num_images,
        options.work, options.out / "measured" / name,
        Path(options.place(model.score.reference)) if isinstance(model.score, FidScore) else None,
        missing(model.inputs, "images", options.inputs), missing(model.inputs, "scores", options.inputs),
    )  # fmt: skip


def baseline_of(job: Job, options: Options, of: str | None = None) -> Job | None:
    """The job without a cache that this one is compared with, of the same model or of the one named.

    None for the renderer's pictures, which share no noise with any run.
    """
    name = of or job.run.model
    if options.scale.models[name].unet is None:
        return None
    return job_of(RowRun(name, options.scale.models[name].baseline_steps), options)


def _settings(own: Settings, run: RowRun, options: Options) -> Settings:
    """The model's own settings with those of the run."""
    place = options.place
    match own:
        case ddpm.sample.Settings():
            return replace(
                own, checkpoint=own.checkpoint and place(own.checkpoint), steps=run.steps, cache=_cache(run, 2),
                zero_cache=run.zero_cache, dtype=options.dtype or own.dtype,
            )  # fmt: skip
        case ldm.sample.Settings():
            return replace(
                own, model=own.model and place(own.model), steps=run.steps, cache=_cache(run, 0),
                zero_cache=run.zero_cache, dtype=options.dtype or own.dtype,
            )  # fmt: skip
        case text.Settings() if not run.zero_cache:
            if options.original_seeds:
                own = replace(own, seed=ORIGINAL_SEED, noise_period=ORIGINAL_BATCH)
            return replace(
                own, prompts=place(own.prompts), steps=run.steps, cache=_cache(run, 1), dtype=options.dtype or own.dtype
            )
        case shapes.renders.Settings():
            return own
    raise ValueError(f"{run.model} cannot be run with zeros for the cached feature")


def _cache(run: RowRun, branch: int) -> CacheConfig:
    """The run's cache. One that never retrieves has the sampler's default branch, since `settings.json` needs one."""
    return run.cache if run.cache.cache_interval > 1 else replace(run.cache, cache_branch_id=branch)
