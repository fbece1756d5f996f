"""The results of the checks, in a JSON file and a Markdown file that are rewritten after every check."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.files import write_json, write_text
from common.reading import read_json

# The state of a check. All but the first three are retried by the next run.
DONE = OK, WRONG, NEEDS_CUDA = "ok", "wrong", "needs CUDA"
FAILED, NO_MEMORY, NO_TIME, TOO_LONG = "failed", "out of memory", "not run: time", "stopped: time"
UNITS = {"seconds": "seconds (median)", "speed_up": "speed-up", "share_of_bound": "of it", "peak_bytes": "GiB at most"}
KINDS = {"step": "Steps", "run": "Loops"}  # the first key of a row of figures, and its table


@dataclass
class Record:
    """The rows, by the names of their checks."""

    path: Path  # of the JSON file; the Markdown file is beside it
    about: dict[str, Any]  # device, versions, code: results of others are dropped
    names: Sequence[str]  # of all checks, in their order
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    def take_over(self) -> bool:
        """Loads rows from the file if its device, versions and code are the same. Returns False if they differ.

        Raises:
            ValueError: a file that is damaged.
        """
        if not self.path.exists():
            return True
        remedy = "delete it, or give another --name"
        content = read_json(self.path, dict, remedy=remedy)
        if content.get("about") != self.about:
            return False
        try:
            self.rows = {row["name"]: row for row in content["checks"] if row["name"] in self.names and row["state"]}
        except (KeyError, TypeError):
            raise ValueError(f"{self.path} holds no results of checks; {remedy}") from None
        return True

    def is_done(self, name: str) -> bool:
        """Whether the check need not be run again."""
        return name in self.rows and self.rows[name]["state"] in DONE

    def add(self, name: str, state: str, seconds: float, text: str, figures: Iterable[dict[str, Any]] = ()) -> None:
        """Adds a row, replacing an older one, and writes both files."""
        row = {"name": name, "state": state, "seconds": round(seconds, 2), "text": text, "rows": list(figures)}
        self.rows[name] = row
        self.write()

    def write(self) -> None:
        """Writes both files, each whole or not at all."""
        write_json(self.path, {"about": self.about, "checks": self._in_order})
        write_text(self.path.with_suffix(".md"), self.markdown())

    @property
    def _in_order(self) -> list[dict[str, Any]]:
        return [self.rows[name] for name in self.names if name in self.rows]

    def markdown(self) -> str:
        """One line for each check, and a table of all steps and of all loops."""
        about = self.about
        small = " Small models: the times mean nothing." if about["tiny"] else ""
        lines = [
            f"# {about['versions']['device']}", "",
            f"`python -m benchmarks.gpu_check`, random weights, torch {about['versions']['torch']}, diffusers "
            f"{about['versions']['diffusers']}, code {about['code']}.{small}", "",
            "| check | state | seconds | found |", "|---|---|--:|---|",
        ]  # fmt: skip
        for row in self._in_order:
            text = row["text"].replace("|", "\\|")
            lines.append(f"| {row['name']} | {row['state']} | {row['seconds']:.1f} | {text} |")
        for kind, title in KINDS.items():
            lines += self._table(kind, title)
        return "\n".join(lines) + "\n"

    def _table(self, kind: str, title: str) -> list[str]:
        checks = [row for row in self._in_order if row["rows"] and kind in row["rows"][0]]
        columns = list(dict.fromkeys(key for row in checks for one in row["rows"] for key in one))
        if not checks:
            return []
        lines = ["", f"## {title}", "", f"| check | {' | '.join(UNITS.get(c, c) for c in columns)} |"]
        lines.append("|---" * 2 + "|--:" * (len(columns) - 1) + "|")
        for row in checks:
            for one in row["rows"]:
                lines.append(f"| {row['name']} | {' | '.join(_cell(c, one.get(c)) for c in columns)} |")
        return lines


def _cell(column: str, value: Any) -> str:
    if value is None:
        return "–"
    if column in ("seconds", "least", "greatest"):
        return f"{value:.4f}"
    if column in ("speed_up", "bound"):
        return f"{value:.2f}×"
    if column == "share_of_bound":
        return f"{value:.0%}"
    return f"{value / 2**30:.2f}" if column == "peak_bytes" else str(value)
