"""Files that are written whole or not at all."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HALF_WRITTEN = re.compile(r"\.(.+)\.[0-9a-f]{8}\.tmp(\.\w+)?")  # stem and suffix


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, with the same suffix, which replaces `path` if nothing failed.

    Its name is random and it is made here, so that two processes never write to the same one, nor through a link.

    Raises:
        ValueError: `path` is a directory, or nothing can be written there.
    """
    check_can_be_written(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp_path = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
    os.close(os.open(tmp_path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield tmp_path
        with tmp_path.open("rb") as file:
            os.fsync(file.fileno())  # or a crash can leave the name with nothing behind it
        os.replace(tmp_path, path)
    finally:
        tmp_path.unlink(missing_ok=True)


def check_can_be_written(*paths: Path | None) -> None:
    """Raises ValueError if one is a directory, or nothing can be written there; before work that would be lost."""
    for path in filter(None, paths):
        if path.is_dir():
            raise ValueError(f"{path} is a directory; name a file")
        check_can_be_made(path.parent)


def check_can_be_made(folder: Path) -> None:
    """Raises ValueError if `folder` is a file, or is not there and can't be made. Makes nothing."""
    try:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise ValueError(f"cannot make the folder {folder}: {error.strerror}; name another") from None
    if not existing.is_dir():
        raise ValueError(f"{existing} is a file; name a folder")
    if not os.access(existing, os.W_OK):
        raise ValueError(f"cannot write to {existing}; name another folder")


def write_text(path: Path, text: str) -> None:
    """Text in UTF-8. Raises as `atomic_write`."""
    with atomic_write(path) as tmp_path:
        tmp_path.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """JSON, a line for each entry. Raises as `atomic_write`."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def remove_half_written(folder: Path, *names: str) -> None:
    """Removes what killed runs left of `atomic_write` in a folder. Only for whoever alone writes there.

    Args:
        names: of the files that were being written; any, if none is given.
    """
    for path in folder.glob(".*.tmp*"):
        half = HALF_WRITTEN.fullmatch(path.name)
        if half and (not names or f"{half[1]}{half[2]}" in names):
            path.unlink(missing_ok=True)
