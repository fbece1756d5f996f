"""Numbers that are kept in a file with what they were asked for, and are taken from it if the same is asked again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from common.environment import versions
from common.files import write_json

Numbers = Mapping[str, float | None]


def read(file: Path, asked: Mapping[str, object]) -> Numbers | None:
    """The numbers in the file; None if there is no file, or one of something else."""
    if not file.is_file():
        return None
    content = json.loads(file.read_text(encoding="utf-8"))
    return content["found"] if content["asked"] == json.loads(json.dumps(asked)) else None


def write(file: Path, asked: Mapping[str, object], found: Numbers, device: torch.device) -> None:
    """Writes the numbers, with the machine that they were found on."""
    write_json(file, {"asked": asked, "found": found, "versions": versions(device)})
