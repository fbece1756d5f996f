"""How a command reads its arguments, and how it ends."""

from __future__ import annotations

import argparse
import codecs
import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

# What an ASCII terminal, or one of another code page, gets for signs that it doesn't have.
PLAIN = {"×": "x", "–": "-", "−": "-", "…": "...", "±": "+/-", "≤": "<=", "≥": ">=", "÷": "/", "→": "->", "²": "^2"}

NO_ROOM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "a file is too big",
}


class RunError(Exception):
    """A right call that failed: exit status 1."""


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which batch systems send before they kill."""


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, except where there is none to show."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        is_flag = action.nargs == 0
        return action.help if is_flag or action.default in (None, "") else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Raises ValueError for a wrong call, for `run_cli` to end in one line as it does for all others."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=Formatter, **settings)

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"^argument ([^:/]+)[^:]*: is ", r"\1 is ", message)  # as all other messages are
        raise ValueError(f"{message.removeprefix('argument ')} ({self.prog} --help)")


def add_quiet_argument(parser: Any) -> None:
    """`--quiet`, which is given by itself where the bars would go to a file: they would fill it with their frames."""
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    parser.add_argument(
        "--quiet", action="store_true", default=not is_terminal, help="no progress bars, as where there is no terminal"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether there was no memory left, on the device or on the host."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and any(words in str(error) for words in ("out of memory", "can't allocate memory", "not enough memory"))
    )


def run_cli(run: Callable[[], None], *, resumable: bool = False) -> int:
    """Runs a command: a wrong call ends in one line and 2, a failed run in one line and 1, Ctrl-C in 130.

    SIGTERM ends it as Ctrl-C does, with 143, and a reader of its output that went away with 141 and nothing said.

    Args:
        run: parses the arguments, and does what they ask for.
        resumable: the same command goes on where it ended.
    """
    _use_plain_signs()
    with _sigterm_interrupts():
        try:
            run()
            sys.stdout.flush()
            return 0
        except BrokenPipeError:
            _discard_output()
            return 141
        except ValueError as error:
            message, status = str(error), 2
        except RunError as error:
            message, status = str(error), 1
        except OSError as error:
            message, status = _of_system(error), 1
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            remedy = "fewer images, a smaller size, --dtype float16, --cpu-offload, for videos --decode-chunk-size 1"
            message, status = f"out of memory; try {remedy}", 1
        except KeyboardInterrupt as error:
            status = 143 if isinstance(error, _Terminated) else 130
            message = "interrupted" + ("; the same command goes on from here" if resumable else "")
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return status


def _of_system(error: OSError) -> str:
    """What the system refused, and what helps."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in NO_ROOM:
        return f"{NO_ROOM[error.errno]}{where}; make room, and run the same command again"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{error.strerror}{where}; change the permissions, or name another folder"
    return str(error) or type(error).__name__


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """While open, SIGTERM raises KeyboardInterrupt, so that what is half written is removed."""

    def interrupt(_: int, __: FrameType | None) -> NoReturn:
        raise _Terminated

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _use_plain_signs() -> None:
    codecs.register_error("plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="plain")


def _plain(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return "".join(PLAIN.get(sign, "?") for sign in error.object[error.start : error.end]), error.end


def _discard_output() -> None:
    """What is still to be flushed goes nowhere, or the interpreter would complain while it ends."""
    with open(os.devnull, "w") as nowhere:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # a stream that is no file
                os.dup2(nowhere.fileno(), stream.fileno())
