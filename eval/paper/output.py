"""Tables as Markdown and CSV: the paper's numbers, and ours with their intervals in columns of their own."""

from __future__ import annotations

import csv
import io
import math
from typing import NamedTuple

from .data import Table
from .jobs import Options, Plan
from .notes import notes_of
from .results import Result, Value


class Column(NamedTuple):
    title: str
    decimals: int | None  # None: four significant digits
    factor: float = 1  # from our unit to the paper's


COLUMNS = {
    "macs_g": Column("MACs (G)", 2),
    "throughput": Column("images/s", 3),
    "speedup": Column("speed-up", 2),
    "fid": Column("FID", 2),
    "kid": Column("KID", None),
    "sfid": Column("sFID", 2),
    "is": Column("IS", 2),
    "precision": Column("precision (%)", 2, 100),
    "recall": Column("recall (%)", 2, 100),
    "clip_score": Column("CLIP Score", 2),
    "psnr": Column("PSNR to the baseline (dB)", 1),
    "distance": Column("distance to the baseline × 10³", 2, 1000),
    "center": Column("c", 0),
    "pow": Column("p", 2),
    "num_full": Column("full steps", 0),
    "num_equation_7": Column("of equation 7", 0),
    "full_steps": Column("which", 0),
}
OF_BASELINE = {"speedup", "psnr", "distance"}  # columns that compare with it, so empty for itself
SHOWN_STEPS = 12  # per schedule in Markdown; the CSV has all
NOTHING = "–"
PARAMETERS = ("center", "pow")
MEASURED = {"shapes": "shipped model", "paper": "measured"}  # labels of our numbers, by scale


def agrees(printed: str, value: float) -> bool:
    """Whether `value`, rounded or truncated to the printed number of decimals, is the printed number."""
    decimals = len(printed.partition(".")[2])
    cut = math.floor(value * 10**decimals + 1e-9) / 10**decimals
    return printed in (f"{value:.{decimals}f}", f"{cut:.{decimals}f}")


def show(name: str, cell: Value | str | None) -> str:
    """A cell of ours as text: 451.7 ± 12.3 where the interval is symmetric, 2.15 (2.09–2.47) where it is not."""
    if cell is None:
        return NOTHING
    if isinstance(cell, str):
        steps = cell.split()
        return cell if len(steps) <= SHOWN_STEPS else " ".join([*steps[:SHOWN_STEPS], "…"])
    if cell.why is not None:
        return "too few images"
    if cell.value is None:
        return NOTHING
    _, decimals, factor = COLUMNS[name]
    value, low, high = (None if x is None else x * factor for x in (cell.value, cell.low, cell.high))
    assert value is not None
    if decimals is None:
        decimals = max(0, 3 - math.floor(math.log10(abs(value)))) if value else 4
    if low is None or high is None or low == high:
        return f"{value:.{decimals}f}"
    if math.isclose(value - low, high - value, rel_tol=1e-6):
        return f"{value:.{decimals}f} ± {high - value:.{decimals}f}"
    return f"{value:.{decimals}f} ({low:.{decimals}f}–{high:.{decimals}f})"


def here(name: str, printed: str | None, cell: Value | str | None) -> str:
    """A cell of ours, marked if it must equal the paper's: MACs are counted, everything else is measured."""
    text = show(name, cell)
    if name == "macs_g" and printed is not None and isinstance(cell, Value) and cell.value is not None:
        text += " ✓" if agrees(printed, cell.value) else " **≠**"
    return text


class Shown(NamedTuple):
    """A column of the table in Markdown."""

    name: str
    title: str
    is_papers: bool


def _shown_columns(table: Table, results: list[Result], options: Options) -> list[Shown]:
    """Parameters; counted columns beside the paper's, which must be equal; other printed ones; measured ones.

    Measured columns can be of models other than the paper's, so they are separate and labelled.
    """
    published = {name for name in table.columns if any(name in row.paper for row in table.rows)}
    ours = [name for name in table.columns if name in published or any(result[name] for result in results)]
    given = [name for name in ours if name in PARAMETERS]
    ours = [name for name in ours if name not in PARAMETERS]
    counted = [name for name in ours if table.kind == "schedules" or name == "macs_g"]
    measured = [name for name in ours if name not in counted]

    def column(name: str, side: str, is_papers: bool = False) -> Shown:
        alone = name not in published and name in counted
        return Shown(name, COLUMNS[name].title + ("" if alone else f", {side}"), is_papers)

    shown = [Shown(name, COLUMNS[name].title, True) for name in given]
    for name in counted:
        shown += [column(name, "paper", True)] if name in published else []
        shown.append(column(name, "counted"))
    shown += [column(name, "paper", True) for name in measured if name in published]
    return shown + [column(name, MEASURED[options.scale.name]) for name in measured]


def markdown(plan: Plan, results: list[Result], options: Options) -> str:
    """The whole file: title, setting, table, and notes as a list."""
    table = plan.table
    shown = _shown_columns(table, results, options)
    lines = ["| row | " + " | ".join(column.title for column in shown) + " |", "|:--|" + "--:|" * len(shown)]
    for k, (row, result) in enumerate(zip(table.rows, results, strict=True), 1):
        cells = []
        for name, _, is_papers in shown:
            printed = row.paper.get(name)
            cells.append(printed or NOTHING if is_papers else here(name, printed, result[name]))
        lines.append("| " + " | ".join([f"{k}. {row.name}", *cells]) + " |")
    notes = "\n".join(f"- {note}" for note in notes_of(plan, results, options))
    parts = [f"# {table.heading}", table.setting, "\n".join(lines), notes]
    return "\n\n".join(part for part in parts if part) + "\n"


def as_csv(table: Table, results: list[Result]) -> str:
    """All numbers in full: for each column the printed and the measured one, in the same unit, and its interval.

    Then the number of images, and when and on which device they were scored.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    sides = ("paper", "here", "low", "high")
    writer.writerow(
        [
            "row",
            *(f"{name}_{side}" for name in table.columns for side in sides),
            "images",
            "date",
            "device",
            "not_shown",
        ]
    )
    for row, result in zip(table.rows, results, strict=True):
        cells: list[object] = []
        for name in table.columns:
            cells += [row.paper.get(name, ""), *_in_unit(name, result[name])]
        made = result.scores
        about = [made.made_from["num_images"], made.date[:10], made.machine["device"]] if made else [""] * 3
        hidden = [f"{name}: {cell.why}" for name, cell in result.cells.items() if isinstance(cell, Value) and cell.why]
        writer.writerow([row.name, *cells, *about, "; ".join(hidden)])
    return out.getvalue()


def _in_unit(name: str, cell: Value | str | None) -> list[object]:
    if not isinstance(cell, Value):
        return [cell or "", "", ""]
    if cell.why is not None:
        return [""] * 3
    return ["" if x is None else x * COLUMNS[name].factor for x in (cell.value, cell.low, cell.high)]


def readme(options: Options) -> str:
    """The introduction to all tables of a scale."""
    name, about = options.scale.name, options.scale.about
    return (
        f"# The paper's tables, scale {name}\n\n{about}\n\n"
        f"Regenerate everything with `python -m eval.tables all --scale {name}`; with `--render`, only the pages, from "
        f"the files in [measured](measured), one folder per run. Each file records what it was made from, when and on "
        "which machine, and has the numbers of every image.\n\n"
        "± is half of a 95 % interval: 1.96 standard errors; for FID, KID and IS from the images' influence on them "
        "(infinitesimal jackknife), with the reference held fixed. Brackets after PSNR, a median, are its 95 % "
        "interval; after speed, the minimum and maximum of all timings. Runs of a model start from the same noise, so "
        "differences between rows are more certain than each row's interval: see [claims](claims.md).\n\n"
        "Image k of a set starts from the noise of (seed, k).\n"
    )
