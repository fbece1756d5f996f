"""SHA-256 of files and models. Digests of large files are cached, since every start needs them.

The cache key has a file's path, device, inode, size and modification time, so a rewritten file is hashed again. The
cache is in $XDG_CACHE_HOME/deepcache or ~/.cache/deepcache, and can be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from pathlib import Path
from typing import Any

from .files import write_text

CACHED_FROM = 2**20  # bytes; smaller files are read faster than looked up
CONFIGURATIONS = ("model_index.json", "config.json")  # at the top of a model's directory
WEIGHTS = (".safetensors", ".bin")
SETTLED = 2.0  # seconds; within one tick of the file system's clock, a file can change and keep its modification time


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal. Raises OSError if it can't be read."""
    stat = path.stat()
    if stat.st_size < CACHED_FROM:
        return _digest(path)
    key = f"{path.resolve()} {stat.st_dev} {stat.st_ino} {stat.st_size} {stat.st_mtime_ns}"
    note = _folder() / hashlib.sha256(key.encode()).hexdigest()[:32]
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if re.fullmatch("[0-9a-f]{64}", remembered := note.read_text(encoding="utf-8")):
            return remembered
    digest = _digest(path)
    if time.time() - stat.st_mtime > SETTLED and path.stat().st_mtime_ns == stat.st_mtime_ns:
        with contextlib.suppress(OSError, ValueError):  # an unwritable home only costs time
            write_text(note, digest)
    return digest


def model_digest(path: Path) -> str:
    """SHA-256 of a checkpoint; or of a diffusers directory: its configuration and everything in its folders.

    Other files at the top level, such as notes and logs, are not part of the model.
    """
    if not path.is_dir():
        return file_digest(path)
    total = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        of_model = "/" in name or file.suffix in WEIGHTS or name in CONFIGURATIONS
        if file.is_file() and of_model and not any(part.startswith(".") for part in name.split("/")):
            total.update(f"{name} {file_digest(file)}\n".encode())
    return total.hexdigest()


def settings_key(settings: Any) -> str:
    """A hash of settings, eight hexadecimal digits, for the end of a folder's name."""
    content = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:8]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deepcache" / "digests"
