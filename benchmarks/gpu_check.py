"""All that needs a GPU to be known, in one command of under ten minutes, with random weights of the published layouts.

python -m benchmarks.gpu_check                       the first GPU; results/gpu/NAME.md and NAME.json
python -m benchmarks.gpu_check --only sdxl           the checks with this in their names
python -m benchmarks.gpu_check --device cpu --tiny   the same on small models, to try the command

Full and retrieve steps and whole loops, eager and compiled, in float16 and bfloat16, batch 1 and 8, beside what the
ratio of MACs allows; memory; noise, and steps in float32, against the CPU's; CUDA graphs; CPU offload; decoding; the
device's clock; that no step waits for the device. Files are written after every check, one that fails is a row of its
own, and one that --minutes has no room for is named: the same command again runs those.

No GPU was at hand when this was written: it was run with --device cpu --tiny alone.
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
CODE = ("benchmarks/gpu", "common", "ddpm", "ldm", "pipelines", "unets", "unets/cache")  # what is measured, and how
PATIENCE = 3  # a check is stopped after this many times what it may take


class OutOfTime(BaseException):
    """A check took too long. Not an Exception, or a library could go on after it."""


def parser() -> Parser:
    p = Parser(prog="python -m benchmarks.gpu_check", description=__doc__)
    p.add_argument("--device", help="cuda, mps or cpu (default: first available)")
    p.add_argument("--tiny", action="store_true", help="small models: to try the command; the times say nothing")
    p.add_argument("--minutes", type=numbers.real(0, 10_000), default=10.0, help="what has no room in them is not run")
    p.add_argument("--only", nargs="+", metavar="PART", help="of the checks, those with one of these in their names")
    p.add_argument("--again", action="store_true", help="also what has a result already")
    p.add_argument("--name", help="of the files (default: the device's)")
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
        raise ValueError(f"--only {' '.join(args.only)} is in no check's name; there are {'; '.join(_names(checks))}")
    path = args.out / f"{name}.json"
    check_can_be_written(path, path.with_suffix(".md"))

    # 2. What is there already.
    record = Record(path, about, _names(checks))
    if not record.take_over():
        print(f"{path} is of another device, version or code: all anew")

    # 3. Run, as far as time goes; last what took too long before, or it would take the time of the others each time.
    chosen.sort(key=lambda check: record.rows.get(check.name, {}).get("state") == TOO_LONG)
    end = time.monotonic() + 60 * args.minutes
    for check in chosen:
        if args.again or not record.is_done(check.name):
            run_check(check, bench, record, end)
            row = record.rows[check.name]
            print(f"{check.name}: {row['state']}{': ' * bool(row['text'])}{row['text']}", flush=True)
    bench.clear()
    record.write()

    # 4. Say what came out.
    states = {check.name: record.rows[check.name]["state"] for check in chosen}
    later = sum(state in (NO_TIME, TOO_LONG) for state in states.values())
    print(f"written {path.with_suffix('.md')} and {path.name}")
    if later:
        print(f"no time was left for {later} of {len(chosen)} checks; the same command runs those")
    if bad := [name for name, state in states.items() if state in (WRONG, FAILED)]:
        raise RunError(f"{len(bad)} of {len(chosen)} checks went wrong: {'; '.join(bad)}")


def run_check(check: Check, bench: Bench, record: Record, end: float) -> None:
    """Runs one check, and records what became of it, whatever that is."""
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
        bench.clear()  # out of the handler, where the error holds on to what was on the device
    record.add(check.name, state, time.monotonic() - start, text, figures)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises OutOfTime in the block once it took that long, where the system has such a signal."""

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
    """A file's name from the device's: "cuda: NVIDIA H100 80GB HBM3" to "nvidia-h100-80gb-hbm3"."""
    words = re.findall(r"[a-z0-9]+", device.partition(": ")[2].lower())
    return "-".join([*words, *(["tiny"] if tiny else [])]) or "device"


def code_digest() -> str:
    """Of the code that is measured, and that measures."""
    files = [Path(__file__), *(file for folder in CODE for file in sorted((ROOT / folder).glob("*.py")))]
    return digest(((file.name, file.read_text(encoding="utf-8")) for file in files), [])


def _names(checks: list[Check]) -> list[str]:
    return [check.name for check in checks]


def main(argv: list[str] | None = None) -> int:
    return run_cli(lambda: run(parser().parse_args(argv)), resumable=True)


if __name__ == "__main__":
    sys.exit(main())
