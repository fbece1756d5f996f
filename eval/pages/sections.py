"""The sections of a page: a folder's tables, figures, and runs with the images of both ways."""

from __future__ import annotations

import csv
import posixpath
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from common.reading import read_text

from .curve import Point, curve_of
from .markdown import to_html
from .rendering import Section, render
from .runs import RESULT, ComparedRun, is_compared

PAIRS_SHOWN = 4  # per run, the others are folded away
GROUPS = ("About", "Tables", "Runs", "Figures")  # in this order on the page


class _Source(NamedTuple):
    """The source of a section: files with the same name, or the folder of a run."""

    name: str
    group: str
    files: dict[str, Path]  # by suffix
    run: Path | None = None


def sections(folder: Path) -> list[Section]:
    """Everything in the folder, README first, then tables, runs and figures by name, numbers by their value.

    Raises:
        ValueError: naming the file that can't be read; or if there is nothing to show.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; give one with results, such as results or outputs")
    sources = _sources(folder)
    if not sources:
        raise ValueError(f"{folder} holds no tables (*.md, *.csv), plots (*.png) or runs ({RESULT}); give another")
    runs = {source.name: ComparedRun.read(source.run) for source in sources if source.run is not None}
    points = [
        (name, run.model, run.speed_up, run.psnr)
        for name, run in runs.items()
        if run.speed_up is not None and run.psnr is not None
    ]
    has_curve = len(points) > 1
    first_run = next((k for k, source in enumerate(sources) if source.run is not None), len(sources))
    anchors = {source.name: f"s{k + (has_curve and k >= first_run)}" for k, source in enumerate(sources)}
    found = []
    for source in sources:
        if source.name in runs:
            found.append(Section(source.name, _run_html(runs[source.name], source.name), source.group))
        else:
            found.append(_file_section(source, partial(_anchor, anchors, source.name)))
    if has_curve:
        curve = curve_of([Point(*point, anchors[point[0]]) for point in points])
        title = "Speed against distance"
        found.insert(first_run, Section(title, render("curve.html", title=title, curve=curve), "Runs"))
    return found


def _sources(folder: Path) -> list[_Source]:
    runs = [path for path in (folder, *folder.rglob("*")) if path.is_dir() and is_compared(path)]
    files: dict[Path, dict[str, Path]] = {}
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        shown = path.suffix in (".md", ".csv", ".png") and path.is_file() and not hidden
        if shown and path.parent not in runs:
            files.setdefault(path.with_suffix(""), {})[path.suffix] = path
    found = []
    for key, own in files.items():
        name = key.relative_to(folder).as_posix()
        name = name.removesuffix(f"/{key.name}") if key.parent.name == key.name else name
        is_figure = key.name.startswith("figure") or set(own) == {".png"}
        group = "About" if key.name.lower() == "readme" else "Figures" if is_figure else "Tables"
        found.append(_Source(name, group, own))
    for path in runs:
        name = path.relative_to(folder).as_posix() if path != folder else folder.resolve().name
        if not path.name.startswith("."):
            found.append(_Source(name, "Runs", {}, path))
    return sorted(found, key=lambda source: (GROUPS.index(source.group), _order(source.name)))


def _order(name: str) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", name.lower())
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts if part]


def _anchor(anchors: dict[str, str], name: str, link: str) -> str | None:
    """Where the page has what a file of that name links to; None if it has not."""
    target, suffix = posixpath.splitext(posixpath.normpath(posixpath.join(posixpath.dirname(name), link)))
    return f"#{anchors[target]}" if suffix in (".md", ".png", ".csv") and target in anchors else None


def _file_section(source: _Source, anchor_of: Callable[[str], str | None]) -> Section:
    files = source.files
    title, text = None, Markup()
    if ".md" in files:
        title, text = to_html(read_text(files[".md"], "write it again"), anchor_of)
    rows = _csv_rows(files[".csv"]) if ".csv" in files else []
    body = render(
        "file.html", title=title or source.name, titled=title is not None, text=text,
        table=[] if ".md" in files else rows,
        plot=files.get(".png"), data=files.get(".csv"),
    )  # fmt: skip
    return Section(title or source.name, body, source.group)


def _csv_rows(path: Path) -> list[list[str]]:
    try:
        return list(csv.reader(read_text(path, "write it again").splitlines()))
    except csv.Error as error:
        raise ValueError(f"cannot read {path}: {error}; write it again as CSV in UTF-8") from None


def _run_html(run: ComparedRun, title: str) -> Markup:
    pairs: list[Any] = run.pairs
    return render("run.html", title=title, run=run, shown=pairs[:PAIRS_SHOWN], folded=pairs[PAIRS_SHOWN:])
