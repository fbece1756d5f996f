"""Every command says how it is used."""

import importlib
import subprocess
import sys

import pytest

from common import quick_help
from tests.layout import COMMANDS, ROOT


def test_commands_are_found():
    assert {"main", "stable_diffusion", "ddpm.sample", "ldm.convert", "eval.tables", "benchmarks.loop"} <= {*COMMANDS}
    assert "DeepCache" not in COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command, capsys, monkeypatch):
    """What the command prints, at once and without torch, is what its parser says with all that it imports."""
    module = importlib.import_module(command)
    monkeypatch.setattr(sys, "argv", [module.__file__])
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as ended:
        module.main(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    called = f"python -m {command}" if "." in command else f"{command}.py"
    assert said.startswith(f"usage: {called} [-h]")

    call = ["-m", command] if "." in command else [f"{command}.py"]
    say_imports = [sys.executable, "-X", "importtime"]
    done = subprocess.run([*say_imports, *call, "--help"], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout == said
    imports = done.stderr.splitlines()
    assert all(line.startswith("import time:") for line in imports)
    loaded = {line.rsplit("|", 1)[-1].strip() for line in imports}
    assert "argparse" in loaded
    inside = {"torch._C", "diffusers.utils.import_utils", "transformers.utils.import_utils"}  # which take seconds
    assert not loaded & inside


@pytest.mark.parametrize(
    ("argv", "asked"),
    [(["--help"], True), (["--steps", "3", "-h"], True), (["--", "-h"], False), (["--prompt=-h"], False), ([], False)],
)
def test_calls_for_help_are_recognised(argv, asked):
    assert quick_help.is_asked_for(argv) == asked


def test_the_report_needs_no_torch():
    code = "import eval.report, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
