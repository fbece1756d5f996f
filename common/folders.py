"""Folders that are written whole or not at all."""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .files import check_can_be_made

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def atomic_folder(out: Path, *, last: str | None = None) -> Iterator[Path]:
    """A temporary folder beside `out`, which becomes `out` if nothing failed.

    If `out` has files already, those of the same names are replaced one by one, and all others stay. What killed
    processes left behind is removed, and what a running one is writing is not.

    Args:
        last: the file that is replaced after all others.

    Raises:
        ValueError: nothing can be written there.
    """
    check_can_be_made(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(out)
    tmp_dir = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    tmp_dir.mkdir()
    lock = _lock(tmp_dir)
    try:
        yield tmp_dir
        if out.is_dir() and any(out.iterdir()):
            files = [path.relative_to(tmp_dir) for path in tmp_dir.rglob("*") if path.is_file()]
            for file in sorted(files, key=lambda file: (file.name == last, file)):
                (out / file).parent.mkdir(parents=True, exist_ok=True)
                os.replace(tmp_dir / file, out / file)
        else:
            if out.is_dir():
                out.rmdir()
            os.rename(tmp_dir, out)
    finally:
        shutil.rmtree(tmp_dir, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _remove_abandoned(out: Path) -> None:
    for tmp_dir in out.parent.glob(f".{glob.escape(out.name)}.{'[0-9a-f]' * 8}.tmp"):
        if not tmp_dir.is_symlink() and (lock := _lock(tmp_dir)) is not None:
            shutil.rmtree(tmp_dir, ignore_errors=True)
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """Locks a folder until the number is closed, or the process dies; None if another process has it, or can't say."""
    if fcntl is None:
        return None
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return number
        except OSError:
            os.close(number)
    return None
