"""Tables as Markdown and CSV: the paper's number and ours beside each other in every cell."""

from __future__ import annotations

import csv
import io
import math
from typing import Any, NamedTuple


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


def show(name: str, value: Any) -> str:
    """A number of ours as text."""
    if value is None:
        return NOTHING
    if isinstance(value, str):
        steps = value.split()
        return value if len(steps) <= SHOWN_STEPS else " ".join([*steps[:SHOWN_STEPS], "…"])
    column = COLUMNS[name]
    return f"{value * column.factor:.{column.decimals}f}"


def here(name: str, printed: str | None, value: Any) -> str:
    """A number of ours, marked where it must be the paper's: operations are counted, all else is measured."""
    text = show(name, value)
    if name == "macs_g" and printed is not None and value is not None:
        text += " ✓" if agrees(printed, value) else " **≠**"
    return text


def markdown(table: dict[str, Any], results: list[dict[str, Any]], about: list[str]) -> str:
    """The whole file: title, setting, table, and `about` and the table's notes as a list."""
    columns = table["columns"]
    published = {name for name in columns if any(name in row["paper"] for row in table["rows"])}
    given = {"center", "pow"}  # parameters, not results
    head = ["#", ""]
    for name in columns:
        title = COLUMNS[name].title
        head += [title] if name in given or name not in published else [f"{title}, paper", "here"]
    lines = ["| " + " | ".join(head) + " |", "|--:|:--|" + "--:|" * (len(head) - 2)]
    for k, (row, result) in enumerate(zip(table["rows"], results, strict=True), 1):
        cells = [str(k), row["name"]]
        for name in columns:
            printed, value = row["paper"].get(name), result.get(name)
            if name in given:
                cells.append(printed or NOTHING)
            elif name in published:
                cells += [printed or NOTHING, here(name, printed, value)]
            else:
                cells.append(show(name, value))
        lines.append("| " + " | ".join(cells) + " |")
    notes = "\n".join(f"- {note}" for note in [*about, *table["notes"]])
    parts = [f"# {table['heading']}", table["setting"], "\n".join(lines), notes]
    return "\n\n".join(part for part in parts if part) + "\n"


def as_csv(table: dict[str, Any], results: list[dict[str, Any]]) -> str:
    """Every number in full: name, then for each column the printed and the measured one, in the same unit."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = table["columns"]
    writer.writerow(["row", *(f"{name}_{side}" for name in columns for side in ("paper", "here"))])
    for row, result in zip(table["rows"], results, strict=True):
        cells = []
        for name in columns:
            value = result.get(name)
            in_unit = value * COLUMNS[name].factor if isinstance(value, float) else value
            cells += [row["paper"].get(name, ""), "" if value is None else in_unit]
        writer.writerow([row["name"], *cells])
    return out.getvalue()
