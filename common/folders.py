"""Folders that are written whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .files import check_can_be_made, new_and_locked, remove_abandoned


@contextmanager
def atomic_folder(out: Path, *, last: str | None = None) -> Iterator[Path]:
    """A temporary folder beside `out`, which becomes `out` if nothing failed.

    Existing files of `out` with the same names are replaced one by one; all others stay. What killed processes left
    behind is removed, but nothing that a running one is writing.

    Args:
        last: the file that is replaced after all others.

    Raises:
        ValueError: `out` can't be written.
    """
    check_can_be_made(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(out)
    with new_and_locked(out, Path.mkdir) as tmp_dir:
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
