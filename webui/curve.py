"""Quality against time as `benchmarks.pareto` measured it on the shipped model, and the settings behind its points."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.pareto_output import KINDS
from benchmarks.points import TextRun, text_runs
from common.plotting import pyplot
from common.reading import read_text

from .options import can_be_shown

MEASURED = Path(__file__).parent.parent / "results" / "pareto" / "text.csv"
REMEDY = "make it with python -m benchmarks.pareto --models text"
SIZE = (9, 6.2)  # inches
DPI = 110
NEAR = 40  # pixels; a click this close to a point selects it


@dataclass(frozen=True)
class Measured:
    """A row of the table that has both a speed-up and a PSNR."""

    name: str
    kind: str
    speed_up: float  # end-to-end
    psnr: float  # to the baseline, in dB, the median
    run: TextRun | None  # what made it; None if the page has no options for that


def read_measured(path: Path = MEASURED) -> list[Measured]:
    """The rows, in the table's order; unknown columns are ignored.

    Raises:
        ValueError: no such file, or a column is missing.
    """
    rows = list(csv.DictReader(io.StringIO(read_text(path, REMEDY))))
    missing = {"name", "kind", "speed_up", "psnr"} - set(rows[0] if rows else ())
    if missing:
        raise ValueError(f"{path} has no column {min(missing)}; {REMEDY}")
    runs = {run.name: run for run in text_runs() if can_be_shown(run.cache)}
    points = []
    for row in rows:
        speed_up, psnr = _number(row["speed_up"]), _number(row["psnr"])
        if speed_up is not None and psnr is not None:
            points.append(Measured(row["name"], row["kind"], speed_up, psnr, runs.get(row["name"])))
    return points


def label(point: Measured) -> str:
    """The point in one line."""
    return f"{point.name}: {point.speed_up:.2f}×, {point.psnr:.1f} dB"


@dataclass(frozen=True)
class Curve:
    """The points as a plot, and their positions in it."""

    picture: Image.Image
    points: Sequence[Measured]
    pixels: np.ndarray  # (N, 2), x and y from the upper left

    def nearest(self, x: float, y: float) -> Measured | None:
        """The point next to a click at this position, or None."""
        if not len(self.points):
            return None
        away = np.hypot(*(self.pixels - (x, y)).T)
        return self.points[int(away.argmin())] if away.min() <= NEAR else None


def draw(points: Sequence[Measured]) -> Curve:
    """PSNR to the baseline against the speed-up; filled are those that the page has options for."""
    figure, axes = pyplot().subplots(figsize=SIZE, dpi=DPI, layout="constrained")
    for kind in dict.fromkeys(point.kind for point in points):
        of_kind = [point for point in points if point.kind == kind]
        axes.scatter(
            [point.speed_up for point in of_kind], [point.psnr for point in of_kind], s=64, label=kind, linewidths=1.6,
            edgecolors=KINDS.get(kind, "#444444"),
            facecolors=[KINDS.get(kind, "#444444") if point.run else "none" for point in of_kind],
        )  # fmt: skip
    axes.set_xlabel("speed-up, end to end", fontsize=14)
    axes.set_ylabel("PSNR to the baseline (dB)", fontsize=14)
    axes.tick_params(labelsize=13)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if points:
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=12)
    stream = io.BytesIO()
    figure.savefig(stream, dpi=DPI, format="png")  # which also lays it out
    places = np.array([(point.speed_up, point.psnr) for point in points], dtype=float).reshape(-1, 2)
    pixels = axes.transData.transform(places)
    pixels[:, 1] = round(SIZE[1] * DPI) - pixels[:, 1]
    pyplot().close(figure)
    return Curve(Image.open(stream).convert("RGB"), points, pixels)


def _number(text: Any) -> float | None:
    """None if there is none, or it is not finite."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None
