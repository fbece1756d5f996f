"""The tables as the paper prints them, and the models they are run on: the JSON files in this folder, typed.

A file `table*.json` has the published numbers, and the settings of each row that can be run. `scales.json` has the
models that the settings are run on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import ddpm.sample
import ldm.sample
import shapes.renders
from common.shipped import ASSETS
from unets.cache.config import CacheConfig

from ..generation import text

FOLDER = Path(__file__).parent
TABLES = [f"table{k}" for k in range(1, 15)]
SCALES = ("shapes", "paper")

# Of the three ways to sample a set of images, and of drawing one.
Settings = ddpm.sample.Settings | ldm.sample.Settings | text.Settings | shapes.renders.Settings
SAMPLERS = {
    "ddpm": ddpm.sample.Settings, "ldm": ldm.sample.Settings, "text": text.Settings, "renders": shapes.renders.Settings,
}  # fmt: skip

FLOOR = "pictures of the renderer"  # the row of scores of a model without mistakes

T = TypeVar("T")


@dataclass(frozen=True)
class RowRun:
    """The run behind a row of a table."""

    model: str  # by its name in scales.json
    steps: int
    cache: CacheConfig = field(default_factory=CacheConfig)
    zero_cache: bool = False
    steps_at: Mapping[str, int] = field(default_factory=dict)  # by scale, if the row sets them itself
    only: str | None = None  # the only scale that the row is run at

    def at(self, scale: str, steps_factor: float) -> RowRun:
        """The same with another number of steps, and the centre of the schedule scaled accordingly.

        Steps that the row sets for a scale are used as they are: LDM-4-G's sampler does not take every number.
        """
        steps = self.steps_at.get(scale, round(self.steps * steps_factor))
        center = self.cache.center
        cache = replace(self.cache, center=None if center is None else round(center * steps_factor))
        return replace(self, steps=steps, cache=cache, steps_at={}, only=None)

    @property
    def num_full(self) -> int:
        """How many of its steps are full."""
        return len(self.cache.full_steps(self.steps))

    @property
    def slug(self) -> str:
        """The settings as part of a file's name."""
        cache, parts = self.cache, [str(self.steps)] if self.steps else []
        if cache.cache_interval > 1:
            parts += [f"n{cache.cache_interval}", f"m{cache.cache_branch_id}"]
        if not cache.uniform:
            parts.append(f"c{cache.center}-p{cache.pow:g}")
        return "-".join(parts) + ("-zero" if self.zero_cache else "")


@dataclass(frozen=True)
class Schedule:
    """A row of Tables 9 and 10, whose rows are schedules, not runs."""

    num_steps: int
    cache: CacheConfig


@dataclass(frozen=True)
class Row:
    """A row: its printed numbers by column, and its run, unless it is from another method or paper."""

    name: str
    paper: Mapping[str, str]
    run: RowRun | None = None
    schedule: Schedule | None = None


@dataclass(frozen=True)
class Table:
    """A table of the paper. Columns have the names of `COLUMNS`."""

    name: str  # such as table3
    title: str
    setting: str
    kind: str  # scores or schedules
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    macs_over: int | None = None  # the number of steps that a run's MACs are divided by

    @property
    def is_timed(self) -> bool:
        """Whether speed is among its columns."""
        return "throughput" in self.columns or "speedup" in self.columns

    @property
    def heading(self) -> str:
        """Number and title."""
        return f"Table {self.name.removeprefix('table')}: {self.title}"

    def at(self, scale: Scale) -> Table:
        """The same with an extra row for each model whose pictures the renderer can draw at this scale."""
        models = dict.fromkeys(row.run.model for row in self.rows if row.run is not None)
        drawn = [name for name in models if name in scale.models and scale.models[name].floor]
        rows = [
            Row(FLOOR if len(drawn) == 1 else f"{FLOOR}, for {name}", {}, RowRun(floor, 0))
            for name in drawn
            if (floor := scale.models[name].floor) is not None
        ]
        return replace(self, rows=(*self.rows, *rows))


@dataclass(frozen=True)
class FidScore:
    """Images are scored by FID and related metrics."""

    variant: str  # of the extractor
    reference: str  # a path, with placeholders that `Options.place` fills in
    distances: str = "float64"  # in which precision and recall are measured
    drawn: str | None = None  # the model whose training pictures the renderer draws as reference; None: the user's file


@dataclass(frozen=True)
class ClipScore:
    """Images are scored by their CLIP Score."""

    clip: str  # open_clip's name of the model


@dataclass(frozen=True)
class Model:
    """The stand-in for a model of the paper."""

    settings: Settings  # except steps and cache; paths with placeholders that `Options.place` fills in
    num_images: int
    batch_size: int
    size: int  # of the images, pixels
    score: FidScore | ClipScore
    unet: str | None = None  # for counting MACs: a published layout's name, or a path; None: nothing to count
    baseline_steps: int = 0
    speed_batch: int = 4  # images per timed call
    floor: str | None = None  # the model of its perfect pictures
    guided: bool = False  # two halves per step
    steps_factor: float = 1  # steps of a run per step of the paper's
    speed_of: str | None = None  # the model with the same speed, which is measured only once
    speed_over: str | None = None  # the model whose baseline the speed-up is over; None: its own
    inputs: tuple[str, ...] = ()  # inputs of images and scores, by their names in inputs.json
    departures: tuple[str, ...] = ()  # differences from the paper's runs: notes of its tables


@dataclass(frozen=True)
class Scale:
    """The models that stand for the paper's."""

    name: str
    about: str
    models: Mapping[str, Model]
    reference_images: int = 0  # number of pictures in a drawn reference
    distance: bool = False  # whether to compare images with the baseline's in the features of the shipped scorer
    departures: Mapping[str, list[str]] = field(default_factory=dict)  # by sampler, for all its models


def load_table(name: str) -> Table:
    """A table of the paper, by its name such as table3. Raises as `parse_table`."""
    return parse_table(name, json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")))


def load_scale(name: str) -> Scale:
    """The models of a scale, one of `SCALES`. Raises as `parse_scale`."""
    return parse_scale(name, json.loads((FOLDER / "scales.json").read_text(encoding="utf-8"))[name])


def parse_table(name: str, content: dict[str, Any]) -> Table:
    """The table in a file's content. Raises ValueError for a key that is unknown or missing."""
    rows = tuple(_row(row, f"{name}, row {k}") for k, row in enumerate(content["rows"], 1))
    lists = {"columns": tuple(content["columns"]), "rows": rows, "notes": tuple(content["notes"])}
    return _make(Table, {**content, **lists, "name": name}, name)


def parse_scale(name: str, content: dict[str, Any]) -> Scale:
    """The scale in an entry of scales.json. Raises ValueError for a key that is unknown or missing."""
    common = content.get("departures", {})
    models = {
        model: _model(
            {**entry, "departures": [*common.get(entry["sampler"], ()), *entry.get("departures", ())]},
            f"{name}, {model}",
        )
        for model, entry in content["models"].items()
    }
    return _make(Scale, {**content, "models": models, "name": name}, name)


def _row(content: dict[str, Any], where: str) -> Row:
    parts: dict[str, Any] = {}
    if "run" in content:
        run = dict(content["run"])
        steps_at = {scale: _steps(run.pop(scale), where) for scale in SCALES if scale in run}
        parts["run"] = _make(RowRun, {**_with_cache(run), "steps_at": steps_at}, where)
    if "schedule" in content:
        parts["schedule"] = _make(Schedule, _with_cache(content["schedule"]), where)
    return _make(Row, {**content, **parts}, where)


def _steps(own: dict[str, int], where: str) -> int:
    """The steps that a row sets for a scale."""
    if own.keys() != {"steps"}:
        raise ValueError(f"{where}: at a scale, a row can have its own steps and nothing else")
    return own["steps"]


def _with_cache(content: dict[str, Any]) -> dict[str, Any]:
    """The same with the entries that describe a cache made into one."""
    cache = {k: v for k, v in content.items() if k in ("cache_interval", "cache_branch_id", "center", "pow")}
    others = {k: v for k, v in content.items() if k not in cache}
    return {**others, "cache": CacheConfig(uniform="center" not in cache, **cache)}


def _model(content: dict[str, Any], where: str) -> Model:
    content = dict(content)
    parts = {
        "settings": _make(SAMPLERS[content.pop("sampler")], content["settings"], f"{where}, settings"),
        "score": _make(ClipScore if "clip" in content["score"] else FidScore, content["score"], f"{where}, score"),
        "inputs": tuple(content.get("inputs", ())),
    }
    if "/" in (content.get("unet") or ""):  # relative to the code, not to the working directory
        parts["unet"] = str(ASSETS.parent / content["unet"])
    parts["departures"] = tuple(content["departures"])
    return _make(Model, {**content, **parts}, where)


def _make(cls: type[T], content: Mapping[str, Any], where: str) -> T:
    try:
        return cls(**content)
    except TypeError as error:  # which names the key
        raise ValueError(f"{where}: {error}") from None
