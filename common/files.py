"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows, where leftovers of killed processes stay
    fcntl = None  # type: ignore[assignment]

HALF_WRITTEN = re.compile(r"\.(.+)\.[0-9a-f]{8}\.tmp(\.\w+)?")  # stem and suffix


@contextmanager
def atomic_write(path: Path, *, tidy: bool = True) -> Iterator[Path]:
    """A temporary file beside `path`, with the same suffix, which replaces `path` if nothing failed.

    Its name is random and it is made here, so that two processes never write to the same one, nor through a link.

    Args:
        tidy: remove what killed processes left of the same file. This lists the whole folder.

    Raises:
        ValueError: `path` is a directory, or can't be written.
    """
    check_can_be_written(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if tidy:
        remove_abandoned(path)
    with new_and_locked(path, _make_file) as tmp_path:
        try:
            yield tmp_path
            with tmp_path.open("rb") as file:
                os.fsync(file.fileno())  # or a crash can leave an empty file of that name
            os.replace(tmp_path, path)
        finally:
            tmp_path.unlink(missing_ok=True)


def check_can_be_written(*paths: Path | None) -> None:
    """Raises ValueError if one is a directory or can't be written; to be called before work that would be lost."""
    for path in filter(None, paths):
        if path.is_dir():
            raise ValueError(f"{path} is a directory; name a file")
        check_can_be_made(path.parent)


def check_can_be_made(folder: Path) -> None:
    """Raises ValueError if `folder` is a file, or doesn't exist and can't be created. Creates nothing."""
    try:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    except OSError as error:  # a name that is too long, a parent that may not be read
        raise ValueError(f"cannot create the folder {folder}: {error.strerror}; choose another") from None
    if not existing.is_dir():
        raise ValueError(f"{existing} is a file; name a folder")
    if not os.access(existing, os.W_OK):
        raise ValueError(f"cannot write to {existing}; choose another folder")


def write_text(path: Path, text: str) -> None:
    """Text in UTF-8. Raises as `atomic_write`."""
    with atomic_write(path) as tmp_path:
        tmp_path.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """JSON, one line per entry. Raises as `atomic_write`."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def half_written(folder: Path, name: str | None = None) -> list[Path]:
    """Temporary files in a folder, of writes in progress or killed ones: those of `name`, or all."""
    found = [(path, HALF_WRITTEN.fullmatch(path.name)) for path in folder.glob(".*.tmp*")]
    return [path for path, half in found if half and name in (None, f"{half[1]}{half[2] or ''}")]


def remove_abandoned(path: Path) -> None:
    """Removes what killed processes left of a file or folder, but nothing that a running one is writing."""
    for tmp_path in half_written(path.parent, path.name):
        with locked(tmp_path) as ours:
            if ours and tmp_path.is_dir():
                shutil.rmtree(tmp_path, ignore_errors=True)
            elif ours:
                tmp_path.unlink(missing_ok=True)


@contextmanager
def new_and_locked(path: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """Makes a file or folder with a random name beside `path`, locked until the end of the block."""
    while True:
        tmp_path = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
        make(tmp_path)
        with locked(tmp_path, wait=True):
            if tmp_path.exists():  # else another process removed it as abandoned before it was locked
                yield tmp_path
                return


@contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Locks a file or folder until the end of the block, or the process dies. False: another process has it."""
    number = _lock(path, wait)
    try:
        yield number is not None
    finally:
        if number is not None:
            os.close(number)


def _make_file(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))


def _lock(path: Path, wait: bool) -> int | None:
    if fcntl is None:
        return None
    with contextlib.suppress(OSError):
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            return number
        except OSError:
            os.close(number)
    return None
