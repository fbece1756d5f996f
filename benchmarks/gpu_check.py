"""Everything that needs a GPU to check, in one command of under ten minutes, with random weights.

python -m benchmarks.gpu_check                       the first GPU; results/gpu/NAME.md and NAME.json
python -m benchmarks.gpu_check --only sdxl           only checks with this in their names
python -m benchmarks.gpu_check --device cpu --tiny   the same on small models, to try the command out

Times full and retrieve steps and end-to-end loops of the published layouts, eager and compiled, in float16 and
bfloat16, batch 1 and 8, beside the speed-up expected from MACs. Checks memory, noise and float32 steps against the
CPU's, CUDA graphs, CPU offload, decoding, the device's clock, and that no step waits for the device. Files are written
after every check, including failed ones. Checks for which --minutes leaves no time are listed; rerun to resume.

This was written without a GPU: it has only been run with --device cpu --tiny.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch

from common import numbers
from common.command_line import Parser, RunError, is_out_of_memory, run_cli
from common.device import resolve_device
from common.environment import versions
from common.files import check_can_be_written
from eval.metrics.version import digest

from .gpu.bench import Bench
from .gpu.checks import Check, all_checks
from .gpu.record import FAILED, NEEDS_CUDA, NO_MEMORY, NO_TIME, OK, TOO_LONG, WRONG, Record

ROOT = Path(__file__).parent.parent
CODE = ("benchmarks/gpu", "common", "ddpm", "ldm", "pipelines", "unets", "unets/cache")  # all code that matters
PATIENCE = 3  # a check is stopped after this many times its limit


class OutOfTime(BaseException):
    """A check took too long. Not an Exception, or a library might catch it."""


def parser() -> Parser:
    p = Parser(prog="python -m benchmarks.gpu_check", description=__doc__)
    p.add_argument("--device", help="cuda, mps or cpu (default: first available)")
    p.add_argument("--tiny", action="store_true", help="small models, to try the command out; the times mean nothing")
    p.add_argument("--minutes", type=numbers.real(0, 10_000), default=10.0, help="time limit, in which checks must fit")
    p.add_argument("--only", nargs="+", metavar="PART", help="run only checks with one of these in their names")
    p.add_argument("--again", action="store_true", help="also rerun checks that have a result")
    p.add_argument("--name", help="name of the files (default: the device's)")
    p.add_argument("--out", type=Path, default=Path("results/gpu"), metavar="DIR")
    return p


def run(args: argparse.Namespace) -> None:
    # 1. Check.
    device = resolve_device(args.device)
    bench = Bench(device, args.tiny)
    about = {"tiny": args.tiny, "code": code_digest(), "versions": versions(device)}
    name = args.name if args.name is not None else default_name(about["versions"]["device"], args.tiny)
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise ValueError(f"--name is {name!r}; it must be letters, digits and . + - _")
    checks = all_checks(bench.dtypes)
    chosen = [check for check in checks if not args.only or any(part in check.name for part in args.only)]
    if not chosen:
        raise ValueError(f"--only {' '.join(args.only)} matches no check; there are {'; '.join(_names(checks))}")
    path = args.out / f"{name}.json"
    check_can_be_written(path, path.with_suffix(".md"))

    # 2. Load earlier results.
    record = Record(path, about, _names(checks))
    if not record.take_over():
        print(f"{path} is from another device, version or code: starting over")

    # 3. Run as many as time allows; those that took too long before come last, or they would use up the time again.
    chosen.sort(key=lambda check: record.rows.get(check.name, {}).get("state") == TOO_LONG)
    end = time.monotonic() + 60 * args.minutes
    for check in chosen:
        if args.again or not record.is_done(check.name):
            run_check(check, bench, record, end)
            row = record.rows[check.name]
            print(f"{check.name}: {row['state']}{': ' * bool(row['text'])}{row['text']}", flush=True)
    bench.clear()
    record.write()

    # 4. Report.
    states = {check.name: record.rows[check.name]["state"] for check in chosen}
    later = sum(state in (NO_TIME, TOO_LONG) for state in states.values())
    print(f"written {path.with_suffix('.md')} and {path.name}")
    if later:
        print(f"no time was left for {later} of {len(chosen)} checks; rerun the same command to run those")
    if bad := [name for name, state in states.items() if state in (WRONG, FAILED)]:
        raise RunError(f"{len(bad)} of {len(chosen)} checks failed: {'; '.join(bad)}")


def run_check(check: Check, bench: Bench, record: Record, end: float) -> None:
    """Runs one check and records its outcome, even if it fails."""
    seconds = 0.0 if bench.tiny else check.seconds
    left = end - time.monotonic()
    if check.needs_cuda and bench.device.type != "cuda":
        return record.add(check.name, NEEDS_CUDA, 0, "")
    if left <= seconds:
        return None if check.name in record.rows else record.add(check.name, NO_TIME, 0, "")
    start = time.monotonic()
    figures: Any = ()
    try:
        with time_limit(min(PATIENCE * check.seconds, left)), torch.no_grad():
            found = check.find(bench, seconds / 2)
        state, text, figures = (OK if found.right else WRONG), found.text, found.rows
    except OutOfTime:
        state, text = TOO_LONG, ""
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        state, text = FAILED, f"{type(error).__name__}: {lines[0][:300]}"
        if is_out_of_memory(error):
            state, text = NO_MEMORY, ""
    if state not in (OK, WRONG):
        bench.clear()  # outside the handler, in which the error keeps device memory alive
    record.add(check.name, state, time.monotonic() - start, text, figures)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises OutOfTime in the block after that many seconds, where the system has such a signal."""

    def stop(*_: Any) -> NoReturn:
        raise OutOfTime

    if not hasattr(signal, "SIGALRM"):  # Windows
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def default_name(device: str, tiny: bool) -> str:
    """A file name from the device: "cuda: NVIDIA H100 80GB HBM3" becomes "nvidia-h100-80gb-hbm3"."""
    words = re.findall(r"[a-z0-9]+", device.partition(": ")[2].lower())
    return "-".join([*words, *(["tiny"] if tiny else [])]) or "device"


def code_digest() -> str:
    """A digest of the measured code and the measuring code."""
    files = [Path(__file__), *(file for folder in CODE for file in sorted((ROOT / folder).glob("*.py")))]
    return digest(((file.name, file.read_text(encoding="utf-8")) for file in files), [])


def _names(checks: list[Check]) -> list[str]:
    return [check.name for check in checks]


def main(argv: list[str] | None = None) -> int:
    return run_cli(lambda: run(parser().parse_args(argv)), resumable=True)


if __name__ == "__main__":
    sys.exit(main())
