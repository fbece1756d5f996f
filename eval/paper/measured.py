"""Measurements of a run, each in its own file with a record of what it was made from.

Each run has a folder in `measured/` of the results, with `scores.json`, `pairs.json` (against the baseline) and
`speed.json`. All tables are made from these files, so any number of processes and machines can measure different rows
at once. A file is only used for exactly what it was made from; otherwise it is measured again.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from common.environment import versions
from common.files import write_text
from common.reading import read_json

DIGITS = 7  # of per-image numbers, which would be long


@dataclass(frozen=True)
class Found:
    """Numbers by name. Values of single images, draws or repeats are in `each`."""

    values: Mapping[str, float | None]
    low: Mapping[str, float | None] = field(default_factory=dict)  # of the 95 % interval, or the minimum
    high: Mapping[str, float | None] = field(default_factory=dict)
    each: Mapping[str, Sequence[float]] = field(default_factory=dict)
    unreliable: Mapping[str, str] = field(default_factory=dict)  # why a number is not shown


@dataclass(frozen=True)
class Measured:
    """The content of a file."""

    made_from: Mapping[str, Any]
    found: Found
    date: str  # UTC, such as 2026-11-26T05:30Z
    machine: Mapping[str, Any]


def read(file: Path) -> Measured | None:
    """The content of the file; None if there is none. Raises ValueError for a damaged one."""
    if not file.is_file():
        return None
    remedy = "remove it to have it measured again"
    content = read_json(file, dict, remedy=remedy)
    try:
        return Measured(content["made_from"], Found(**content["found"]), content["date"], content["machine"])
    except (KeyError, TypeError):
        raise ValueError(f"{file} is no record of a measurement; {remedy}") from None


def measured(file: Path, made_from: Mapping[str, Any], measure: Callable[[], Found], device: torch.device) -> Measured:
    """The content of the file if it was made from exactly this; else measures now and writes the file."""
    saved = read(file)
    if saved is not None and saved.made_from == json.loads(json.dumps(made_from)):
        return saved
    found = measure()
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%MZ")
    write_text(file, _dumps(asdict(Measured(made_from, found, date, versions(device)))))
    saved = read(file)  # read back, so that the digits are always the same
    assert saved is not None
    return saved


def _dumps(content: Mapping[str, Any]) -> str:
    """JSON, each list of numbers on one line."""
    each = content["found"]["each"]
    content["found"]["each"] = {
        name: [float(f"{value:.{DIGITS}g}") for value in values] for name, values in each.items()
    }
    text = json.dumps(content, indent=1)
    return re.sub(r"\[\s+[-\d.e+,\s]+\]", lambda match: re.sub(r"\s+", " ", match[0]), text) + "\n"
