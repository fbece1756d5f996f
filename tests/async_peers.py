"""Runs of AsyncDiff on tiny models in several processes, forked from a server with everything imported."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pipelines
from asyncdiff.call import call_in_parts
from asyncdiff.plan import Plan, cut
from asyncdiff.processes import joined
from common.command_line import run_cli
from pipelines.loading import new_scheduler
from tests.families import FAMILIES
from tests.two_levels import small

CONTEXT: Any = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])
CPU = torch.device("cpu")
STEPS = 5


@cache
def tiny_pipeline(name: str, scheduler: str = "ddim") -> Any:
    """The fork of a family whose U-Net has two levels, which is nine layers."""
    family = small(name)
    parts = family.parts()
    parts["scheduler"] = new_scheduler(scheduler, parts["scheduler"].config)
    pipe = getattr(pipelines, family.class_name)(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents(name: str, plan: Plan | None, processes: Any, scheduler: str = "ddim", **extra: Any) -> np.ndarray:
    """After a few steps; without a plan, those of the plain fork."""
    torch.set_num_threads(1)
    pipe = tiny_pipeline(name, scheduler)
    arguments = {
        **FAMILIES[name].arguments, "num_inference_steps": STEPS, "output_type": "latent",
        "generator": torch.Generator().manual_seed(1), **extra,
    }  # fmt: skip
    with torch.no_grad():
        output = pipe(**arguments) if plan is None else call_in_parts(pipe, plan, processes, **arguments)
    return np.asarray(output.frames if hasattr(output, "frames") else output.images)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(size: int, work: Callable[..., None], *arguments: Any, errors: Path | None = None) -> list[Any]:
    """That many processes, each with the environment that torchrun gives; `work(*arguments)` is a module's function."""
    port = free_port()
    processes = [
        CONTEXT.Process(target=_main, args=(rank, size, port, work, arguments, errors)) for rank in range(size)
    ]
    for process in processes:
        process.start()
    return processes


def ends(processes: Sequence[Any], within: float = 300) -> list[int]:
    """The exit statuses of processes that end by themselves; those that don't are killed."""
    for process in processes:
        process.join(within)
    statuses = [process.exitcode for process in processes]
    for process in processes:
        if process.exitcode is None:
            process.kill()
            process.join()
    return statuses


def save_latents(cases: Sequence[tuple[str, Plan, dict[str, Any]]], folder: Path) -> None:
    """Each case's latents as this process has them, one case after the other in one group of processes."""
    with joined(CPU, 300) as group:
        for k, (name, plan, extra) in enumerate(cases):
            np.save(folder / f"{k}-{group.rank}.npy", latents(name, plan, group, **extra))


def die_at_step_2(how: str, timeout: float) -> None:
    """A run in two processes, of which the second is killed in its third step, or goes to sleep."""
    with joined(CPU, timeout) as group:

        def end(_: Any, step: int, __: Any, values: dict[str, Any]) -> dict[str, Any]:
            if group.rank == 1 and step == 2:
                if how == "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(1000)
            return values

        latents("sd", Plan(cut([1] * 9, 2)), group, callback_on_step_end=end)


def _main(rank: int, size: int, port: int, work: Callable[..., None], arguments: Any, errors: Path | None) -> None:
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip
    if errors is not None:
        sys.stderr = open(errors / f"{rank}.txt", "w", buffering=1)  # noqa: SIM115  # until the process ends
    raise SystemExit(run_cli(lambda: work(*arguments)))
