"""How commands end: by one line and a status, whatever ends them."""

import errno
import os
import resource
import signal
import subprocess
import sys

import pytest

from common.command_line import RunError, run_cli
from tests.layout import ROOT


def raising(error):
    def run():
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ValueError("--steps is 0"), 2, "--steps is 0"),
        (RunError("no schedule reaches it"), 1, "no schedule reaches it"),
        (OSError(errno.ENOSPC, "No space left on device", "a.png"), 1, "the disk is full (a.png); free some space"),
        (OSError(errno.EDQUOT, "Quota exceeded"), 1, "the disk quota is exceeded; free some space"),
        (PermissionError(errno.EACCES, "Permission denied", "a.png"), 1, "Permission denied (a.png); change the perm"),
        (OSError(errno.EROFS, "Read-only file system", "a.png"), 1, "choose another folder"),
        (OSError(errno.EIO, "Input/output error"), 1, "Input/output error"),
        (MemoryError(), 1, "out of memory; try fewer images"),
        (RuntimeError("CUDA out of memory. Tried to"), 1, "out of memory; try fewer images"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
            1,
            "out of memory",
        ),
        (ValueError("two\nlines"), 2, "two lines"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_every_known_end_is_one_line(error, status, said, capsys):
    assert run_cli(raising(error)) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and said in line


def test_unexpected_errors_keep_their_traceback():
    with pytest.raises(RuntimeError, match="a fault"):
        run_cli(raising(RuntimeError("a fault")))


def test_an_interrupted_command_says_that_it_goes_on_only_where_it_does(capsys):
    for resumable in (False, True):
        assert run_cli(raising(KeyboardInterrupt()), resumable=resumable) == 130
        assert ("rerun the same command to resume" in capsys.readouterr().err) == resumable


def start(code, **settings):
    """A process that runs these lines as a command does."""
    lines = (
        "import signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in the background
        f"from common.command_line import run_cli\ndef run():\n{code}\nsys.exit(run_cli(run))\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", lines], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **settings
    )


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_command_and_nothing_half_written_stays(number, status, tmp_path):
    code = (
        "    import pathlib, time\n    from common.files import atomic_write\n"
        f"    with atomic_write(pathlib.Path({str(tmp_path / 'x.txt')!r})):\n"
        "        print('begun', flush=True)\n        time.sleep(60)"
    )
    process = start(code)
    assert process.stdout is not None
    process.stdout.readline()
    assert len(os.listdir(tmp_path)) == 1
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == status
    assert errors == "error: interrupted\n"
    assert os.listdir(tmp_path) == []


def test_a_reader_that_goes_away_is_no_error():
    process = start("    for k in range(100_000):\n        print(k)")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(30) == 141


def test_a_terminal_without_signs_gets_plain_ones():
    process = start(
        "    print('2.4× (2.1–2.6) ± 0.1 → …')\n    raise ValueError('side is − 3 × 4 ☃')",
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    output, errors = process.communicate(timeout=30)
    assert output == "2.4x (2.1-2.6) +/- 0.1 -> ...\n"
    assert errors == "error: side is - 3 x 4 ?\n"


def test_a_full_disk_is_one_line_and_leaves_the_earlier_file(tmp_path):
    (tmp_path / "index.html").write_text("earlier")
    (tmp_path / "table.md").write_text("# Title\n")

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    call = [sys.executable, "-m", "eval.report", str(tmp_path)]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and "free some space" in done.stderr
    assert (tmp_path / "index.html").read_text() == "earlier"
    assert sorted(os.listdir(tmp_path)) == ["index.html", "table.md"]
