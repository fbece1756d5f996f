"""Commands that are killed: each runs in a process that a server with everything imported forks."""

import importlib
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

CONTEXT: Any = multiprocessing.get_context("forkserver")


def serve(*modules: str) -> None:
    """Imports what the commands need, once."""
    CONTEXT.set_forkserver_preload([*modules, __name__])


def run(module: str, arguments: list[str], cwd: Path, *, kill_after: float | None = None) -> tuple[int, float]:
    """Exit status, and seconds. After `kill_after` seconds it is killed, if it has not ended by then."""
    process = CONTEXT.Process(target=_main, args=(module, arguments, cwd))
    started = time.monotonic()
    process.start()
    process.join(kill_after)
    if process.exitcode is None:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    return process.exitcode, time.monotonic() - started


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _main(module: str, arguments: list[str], cwd: Path) -> None:
    os.chdir(cwd)
    raise SystemExit(importlib.import_module(module).main(arguments))
