"""How a command reads its arguments, and how it ends."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any


class RunError(Exception):
    """A right call that failed: exit status 1."""


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, except where there is none to show."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False, "") else super()._get_help_string(action)


def at_least(args: argparse.Namespace, **least: int) -> None:
    """Raises ValueError naming the first argument that is below its least value."""
    for name, value in least.items():
        if (given := getattr(args, name)) is not None and given < value:
            raise ValueError(f"--{name.replace('_', '-')} is {given}; it must be at least {value}")


def divisible_by_8(args: argparse.Namespace, *names: str) -> None:
    """Raises ValueError naming the first of these sizes in pixels that latents can't have."""
    for name in names:
        if (getattr(args, name, None) or 8) % 8:
            raise ValueError(f"--{name} is {getattr(args, name)}; it must be divisible by 8")


def whole_numbers(text: str) -> list[int]:
    """Comma-separated whole numbers of the command line."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers such as 0,3,6") from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch could not get memory, on the device or on the host."""
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("out of memory", "can't allocate memory")
    )


def run_cli(run: Callable[..., None], *args: Any) -> int:
    """Runs a command: a wrong call ends in one line and 2, a failed run in one line and 1, Ctrl-C in 130."""
    try:
        run(*args)
    except ValueError as error:
        message, status = str(error), 2
    except RunError as error:
        message, status = str(error), 1
    except OSError as error:
        message, status = f"{error}; is the disk full?", 1
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        remedy = "fewer images, a smaller size, --dtype float16, --cpu-offload, for videos --decode-chunk-size 1"
        message, status = f"out of memory; try {remedy}", 1
    except KeyboardInterrupt:
        message, status = "interrupted; nothing was written", 130
    else:
        return 0
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return status
