"""Commands in processes of their own, to be killed: a server with everything imported forks them."""

import contextlib
import importlib
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from eval.paper.data import Scale, load_scale
from tests.layout import ROOT

CONTEXT: Any = multiprocessing.get_context("forkserver")
COMMANDS = (
    "ddpm.sample", "ldm.sample", "ldm.convert", "eval.generate", "eval.calibrate", "eval.tables", "stable_diffusion",
)  # fmt: skip
# One server for all tests: what is named once it runs is not imported. torchmetrics is what commands import late.
CONTEXT.set_forkserver_preload([*COMMANDS, "torchmetrics.functional.image", __name__])


def start(module: str, arguments: list[str], cwd: Path = ROOT, printed: Path = Path(os.devnull)) -> Any:
    """The process, which has begun. One thread: more may add numbers up in another order.

    Its output goes to the file `printed`.
    """
    process = CONTEXT.Process(target=_main, args=(module, arguments, cwd, printed))
    process.start()
    return process


def run(module: str, arguments: list[str], cwd: Path, *, kill_after: float | None = None) -> tuple[int, float]:
    """Exit status, and seconds. After `kill_after` seconds it is killed, if it has not ended by then."""
    started = time.monotonic()
    process = start(module, arguments, cwd)
    process.join(kill_after)
    if process.exitcode is None:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    return process.exitcode, time.monotonic() - started


def with_few_references(name: str) -> Scale:
    """A scale whose references are of few pictures; drawing two thousand takes most of a small table's time."""
    return replace(load_scale(name), reference_images=40)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _main(module: str, arguments: list[str], cwd: Path, printed: Path) -> None:
    os.chdir(cwd)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell has its background jobs ignore
    command: Any = importlib.import_module(module)
    if module == "eval.tables":
        command.load_scale = with_few_references
    with printed.open("w", buffering=1, encoding="utf-8") as file, contextlib.redirect_stdout(file):
        status = command.main(arguments)
    raise SystemExit(status)
