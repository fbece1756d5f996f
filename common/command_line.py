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

# Replacements for characters that an ASCII terminal, or one with another code page, can't show.
PLAIN = {"×": "x", "–": "-", "−": "-", "…": "...", "±": "+/-", "≤": "<=", "≥": ">=", "÷": "/", "→": "->", "²": "^2"}

NO_ROOM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is exceeded",
    errno.EFBIG: "the file is too large",
}


class RunError(Exception):
    """A valid command that failed: exit status 1."""


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which batch systems send before they kill a job."""


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, except where there are none."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        is_flag = action.nargs == 0
        return action.help if is_flag or action.default in (None, "") else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Raises ValueError for invalid arguments, which `run_cli` reports in one line like any other error."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=Formatter, **settings)

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"^argument ([^:/]+)[^:]*: is ", r"\1 is ", message)  # like our other messages
        raise ValueError(f"{message.removeprefix('argument ')} ({self.prog} --help)")


def add_quiet_argument(parser: Any) -> None:
    """`--quiet`, on by default unless stderr is a terminal: progress bars would fill a log file."""
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    parser.add_argument(
        "--quiet", action="store_true", default=not is_terminal, help="no progress bars (default without a terminal)"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device or the host ran out of memory."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and any(words in str(error) for words in ("out of memory", "can't allocate memory", "not enough memory"))
    )


def run_cli(run: Callable[[], None], *, resumable: bool = False) -> int:
    """Runs a command. Returns its exit status: 2 for invalid arguments, 1 for a failed run, 130 for Ctrl-C.

    Errors are one line on stderr. SIGTERM is handled like Ctrl-C, with status 143. If the reader of its output goes
    away, the command ends silently, with status 141.

    Args:
        run: parses the arguments and does the work.
        resumable: rerunning the same command continues where it stopped.
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
            remedy = "fewer images, a smaller size, --dtype float16, --cpu-offload, or for videos --decode-chunk-size 1"
            message, status = f"out of memory; try {remedy}", 1
        except KeyboardInterrupt as error:
            status = 143 if isinstance(error, _Terminated) else 130
            message = "interrupted" + ("; rerun the same command to resume" if resumable else "")
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return status


def _of_system(error: OSError) -> str:
    """An error of the operating system in one line, with the remedy."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in NO_ROOM:
        return f"{NO_ROOM[error.errno]}{where}; free some space and rerun the command"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{error.strerror}{where}; change the permissions or choose another folder"
    return str(error) or type(error).__name__


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """While open, SIGTERM raises KeyboardInterrupt, so that half-written files are removed."""

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
    """Discards unflushed output, about which the interpreter would complain on exit."""
    with open(os.devnull, "w") as nowhere:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # a stream without a file
                os.dup2(nowhere.fileno(), stream.fileno())
