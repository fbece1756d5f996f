"""What was measured of a run, in a file of its own that says what it was made from.

Each run has a folder in `measured/` of the results, with `scores.json`, `pairs.json` (against the baseline) and
`speed.json`. All tables are made from these files, whoever wrote them: any number of processes and machines can measure
different rows at once. A file is taken only for what it was made from; anything else makes it anew.
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

DIGITS = 7  # of numbers for each image, which would be long


@dataclass(frozen=True)
class Found:
    """Numbers, by name. What has several values, of images, draws or repeats, has them in `each`."""

    values: Mapping[str, float | None]
    low: Mapping[str, float | None] = field(default_factory=dict)  # of the 95 % interval, or the least
    high: Mapping[str, float | None] = field(default_factory=dict)
    each: Mapping[str, Sequence[float]] = field(default_factory=dict)
    unreliable: Mapping[str, str] = field(default_factory=dict)  # why a number is not to be shown


@dataclass(frozen=True)
class Measured:
    """The content of a file."""

    made_from: Mapping[str, Any]
    found: Found
    date: str  # UTC, such as 2026-11-26T05:30Z
    machine: Mapping[str, Any]


def read(file: Path) -> Measured | None:
    """What the file holds; None if there is none. Raises ValueError for a damaged one."""
    if not file.is_file():
        return None
    remedy = "remove it to have it measured again"
    content = read_json(file, dict, remedy=remedy)
    try:
        return Measured(content["made_from"], Found(**content["found"]), content["date"], content["machine"])
    except (KeyError, TypeError):
        raise ValueError(f"{file} is no record of a measurement; {remedy}") from None


def measured(file: Path, made_from: Mapping[str, Any], measure: Callable[[], Found], device: torch.device) -> Measured:
    """What the file holds if it was made from just this; else what is measured now, and written to it."""
    there = read(file)
    if there is not None and there.made_from == json.loads(json.dumps(made_from)):
        return there
    found = measure()
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%MZ")
    write_text(file, _dumps(asdict(Measured(made_from, found, date, versions(device)))))
    there = read(file)  # with as many digits as at any other time
    assert there is not None
    return there


def _dumps(content: Mapping[str, Any]) -> str:
    """JSON, each list of numbers on one line."""
    each = content["found"]["each"]
    content["found"]["each"] = {
        name: [float(f"{value:.{DIGITS}g}") for value in values] for name, values in each.items()
    }
    text = json.dumps(content, indent=1)
    return re.sub(r"\[\s+[-\d.e+,\s]+\]", lambda match: re.sub(r"\s+", " ", match[0]), text) + "\n"
