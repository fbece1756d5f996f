"""Every command says how it is used."""

import importlib
import resource
import subprocess
import sys

import pytest

from tests.layout import COMMANDS, ROOT

MOST_SECONDS = 1.5  # of the processor, for a command that needs no torch


def test_commands_are_found():
    assert {"main", "stable_diffusion", "ddpm.sample", "ldm.convert", "eval.tables", "benchmarks.loop"} <= {*COMMANDS}
    assert "DeepCache" not in COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command, capsys, monkeypatch):
    module = importlib.import_module(command)
    monkeypatch.setattr(sys, "argv", [module.__file__])
    with pytest.raises(SystemExit) as ended:
        module.main(["--help"])
    assert ended.value.code == 0
    called = f"python -m {command}" if "." in command else f"{command}.py"
    assert capsys.readouterr().out.startswith(f"usage: {called} [-h]")


def test_help_of_a_command_without_torch_is_quick():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "eval.report", "--help"], cwd=ROOT, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < MOST_SECONDS


def test_the_report_needs_no_torch():
    code = "import eval.report, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
