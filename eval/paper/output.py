"""Tables as Markdown and CSV: the paper's number and ours beside each other in every cell."""

from __future__ import annotations

import csv
import io
import math
from typing import NamedTuple

from common.environment import versions

from .data import Table
from .jobs import Options, Plan
from .results import Number, Result


class Column(NamedTuple):
    title: str
    decimals: int
    factor: float = 1  # from our unit to the paper's


COLUMNS = {
    "macs_g": Column("MACs (G)", 2),
    "throughput": Column("images/s", 3),
    "speedup": Column("speed-up", 2),
    "fid": Column("FID", 2),
    "sfid": Column("sFID", 2),
    "is": Column("IS", 2),
    "precision": Column("precision (%)", 2, 100),
    "recall": Column("recall (%)", 2, 100),
    "clip_score": Column("CLIP Score", 2),
    "psnr": Column("PSNR to the baseline (dB)", 1),
    "center": Column("c", 0),
    "pow": Column("p", 2),
    "num_full": Column("full steps", 0),
    "num_equation_7": Column("of equation 7", 0),
    "full_steps": Column("which", 0),
}
SHOWN_STEPS = 12  # of a schedule in Markdown; the CSV has all
NOTHING = "–"


def agrees(printed: str, value: float) -> bool:
    """Whether `value`, rounded or cut off to as many decimals as were printed, is what was printed."""
    decimals = len(printed.partition(".")[2])
    cut = math.floor(value * 10**decimals + 1e-9) / 10**decimals
    return printed in (f"{value:.{decimals}f}", f"{cut:.{decimals}f}")


def show(name: str, value: Number) -> str:
    """A number of ours as text."""
    if value is None:
        return NOTHING
    if isinstance(value, str):
        steps = value.split()
        return value if len(steps) <= SHOWN_STEPS else " ".join([*steps[:SHOWN_STEPS], "…"])
    column = COLUMNS[name]
    return f"{value * column.factor:.{column.decimals}f}"


def here(name: str, printed: str | None, value: Number) -> str:
    """A number of ours, marked where it must be the paper's: MACs are counted, all else is measured."""
    text = show(name, value)
    if name == "macs_g" and printed is not None and isinstance(value, float):
        text += " ✓" if agrees(printed, value) else " **≠**"
    return text


def markdown(plan: Plan, results: list[Result], options: Options) -> str:
    """The whole file: title, setting, table, and notes as a list."""
    table = plan.table
    columns = table.columns
    published = {name for name in columns if any(name in row.paper for row in table.rows)}
    given = {"center", "pow"}  # parameters, not results
    head = ["#", ""]
    for name in columns:
        title = COLUMNS[name].title
        head += [title] if name in given or name not in published else [f"{title}, paper", "here"]
    lines = ["| " + " | ".join(head) + " |", "|--:|:--|" + "--:|" * (len(head) - 2)]
    for k, (row, result) in enumerate(zip(table.rows, results, strict=True), 1):
        cells = [str(k), row.name]
        for name in columns:
            printed, value = row.paper.get(name), result[name]
            if name in given:
                cells.append(printed or NOTHING)
            elif name in published:
                cells += [printed or NOTHING, here(name, printed, value)]
            else:
                cells.append(show(name, value))
        lines.append("| " + " | ".join(cells) + " |")
    notes = "\n".join(f"- {note}" for note in [*_about(plan, options), *table.notes])
    parts = [f"# {table.heading}", table.setting, "\n".join(lines), notes]
    return "\n\n".join(part for part in parts if part) + "\n"


def as_csv(table: Table, results: list[Result]) -> str:
    """Every number in full: name, then for each column the printed and the measured one, in the same unit."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["row", *(f"{name}_{side}" for name in table.columns for side in ("paper", "here"))])
    for row, result in zip(table.rows, results, strict=True):
        cells: list[Number] = []
        for name in table.columns:
            value = result[name]
            in_unit = value * COLUMNS[name].factor if isinstance(value, float) else value
            cells += [row.paper.get(name, ""), "" if value is None else in_unit]
        writer.writerow([row.name, *cells])
    return out.getvalue()


def readme(options: Options) -> str:
    """What a reader of all tables of a scale must know."""
    name, about = options.scale.name, options.scale.about
    machine = ", ".join(f"{part} {value}" for part, value in versions(options.device).items())
    seeds = "image k of a set starts from the noise of (seed, k), seed 0, and 1 for COCO's stand-in"
    return (
        f"# The paper's tables, scale {name}\n\n{about}\n\n"
        f"Regenerate all of it with `python -m eval.tables all --scale {name}`. Seeds: {seeds}. "
        f"Speed: batches of {options.speed_batch}, whole calls, medians of {options.repeats} in turn with the baseline."
        f"\n\nMachine of the last run: {machine}.\n"
    )


def _about(plan: Plan, options: Options) -> list[str]:
    """What a reader of the table must know of how our numbers came about."""
    table, scale = plan.table, options.scale
    if table.kind == "schedules":
        return ["Counted here, exactly; nothing of it depends on weights."]
    notes = []
    if scale.name == "shapes":
        counts = sorted({job.num_images for job in plan.jobs if job is not None})
        notes.append(f"Here: the shipped models, {' and '.join(map(str, counts))} images. {scale.about}")
    if "macs_g" in table.columns:
        notes.append(
            "MACs are of the published layouts, counted without weights; ✓ is the printed number, to its digits."
        )
    models = {row.run.model for row in table.rows if row.run is not None}
    if missing := sorted(models - scale.models.keys()):
        notes.append(f"No model stands for {', '.join(missing)} at this scale.")
    if others := [str(k) for k, row in enumerate(table.rows, 1) if row.run is None]:
        notes.append(f"Rows {', '.join(others)} are of other methods or other papers and are not run.")
    for k, job in enumerate(plan.jobs, 1):
        if job is not None and job.missing:
            notes.append(f"Row {k} was not run, for want of {'; '.join(job.missing)}.")
    return notes
