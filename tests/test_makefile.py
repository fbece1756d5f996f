"""The Makefile removes nothing that is not its own. Python is a stand-in here: nothing is installed."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.layout import ROOT

# `-c` checks the version; `-m venv DIR` makes a Python in DIR; `-m pip` fails while the file `offline` exists.
PYTHON = """#!/bin/sh
echo "$@" >> calls
case "$*" in
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    *pip*) test ! -e offline ;;
esac
"""


@pytest.fixture
def folder(tmp_path):
    """A checkout with no more than the Makefile needs."""
    if shutil.which("make") is None:
        pytest.skip("there is no make")
    for path in [ROOT / "Makefile", *ROOT.glob("requirements*.txt")]:
        shutil.copy(path, tmp_path)
    (tmp_path / "tests" / "plugin").mkdir(parents=True)
    for requirements in (ROOT / "tests" / "plugin").glob("diffusers-*.txt"):
        shutil.copy(requirements, tmp_path / "tests" / "plugin")
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Nothing of a `make` that these tests run under, whose options and settings are in the environment.
    settings = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        ["make", "PYTHON=./python", *arguments], cwd=folder, env=settings, capture_output=True, text=True
    )


def test_without_a_target_it_explains_itself(folder):
    said = make(folder).stdout
    assert all(f"make {target}" in said for target in ("demo", "app", "test", "test-plugin", "lint", "clean"))
    assert not (folder / ".venv").exists()


def test_an_environment_of_someone_else_is_refused(folder):
    (folder / ".venv").mkdir()
    (folder / ".venv" / "precious").touch()
    run = make(folder, "test")
    assert run.returncode != 0
    assert run.stderr.splitlines()[0].startswith(".venv was not made by this Makefile")
    assert [path.name for path in (folder / ".venv").iterdir()] == ["precious"]


def test_another_folder_can_be_named_instead(folder):
    (folder / ".venv").mkdir()
    assert make(folder, "test", "VENV=.venv-deepcache").returncode == 0
    assert not any((folder / ".venv").iterdir())
    assert (folder / ".venv-deepcache" / "installed").exists()


def test_it_says_what_it_installs_and_installs_once(folder):
    first = make(folder, "test")
    assert first.returncode == 0
    assert "Installing into .venv" in first.stdout
    assert "6 GB" in first.stdout
    assert "--quiet" not in (folder / "calls").read_text()
    assert "Installing" not in make(folder, "test").stdout


def test_an_interrupted_installation_starts_over(folder):
    (folder / "offline").touch()
    assert make(folder, "test").returncode != 0
    (folder / ".venv" / "half").touch()
    (folder / "offline").unlink()
    assert make(folder, "test").returncode == 0
    assert not (folder / ".venv" / "half").exists()


def test_the_page_has_an_environment_of_its_own(folder):
    assert make(folder, "app").returncode == 0
    said = (folder / "calls").read_text().splitlines()
    assert "--python .venv-app/bin/python install -r requirements-app.txt" in said[-2]
    assert said[-1] == "app.py"
    assert (folder / ".venv-app" / "installed").exists()
    shutil.rmtree(folder / ".venv-app")
    (folder / ".venv-app").mkdir()
    (folder / ".venv-app" / "precious").touch()
    assert make(folder, "app").returncode != 0
    assert [path.name for path in (folder / ".venv-app").iterdir()] == ["precious"]


def test_mlx_is_installed_when_it_is_asked_for_alone(folder):
    assert make(folder, "test").returncode == 0
    assert "requirements-mlx.txt" not in (folder / "calls").read_text()
    assert make(folder, "mlx").returncode == 0
    assert (folder / "calls").read_text().splitlines()[-1].endswith("install -r requirements-mlx.txt")


def test_the_plug_in_is_tested_with_every_other_release_in_an_environment_of_its_own(folder):
    assert make(folder, "test-plugin").returncode == 0
    said = (folder / "calls").read_text().splitlines()
    for release in ("0.30", "0.42"):
        installed = f"--python .venv-diffusers-{release}/bin/python install -r tests/plugin/diffusers-{release}.txt"
        assert any(installed in line for line in said)
        assert (folder / f".venv-diffusers-{release}" / "installed").exists()
    assert said[-2:] == ["-m pytest -q -n auto tests/plugin"] * 2
    assert "Installing" not in make(folder, "test-plugin").stdout


def test_changed_requirements_are_installed_over_what_is_there(folder):
    make(folder, "test")
    (folder / ".venv" / "kept").touch()
    installed = (folder / ".venv" / "installed").stat().st_mtime
    os.utime(folder / "requirements.txt", (installed + 10, installed + 10))
    assert "Installing into .venv" in make(folder, "test").stdout
    assert (folder / ".venv" / "kept").exists()


def test_torch_can_come_from_an_index_of_its_own(folder):
    assert make(folder, "test", "TORCH_INDEX=https://torch.example/cpu").returncode == 0
    pip = [line for line in (folder / "calls").read_text().splitlines() if "-m pip" in line]
    assert ["https://torch.example/cpu" in line for line in pip] == [True, False, False]
    assert "torch==" in pip[0]
    assert "torchvision==" in pip[0]
    assert "torchmetrics" not in pip[0]


def test_clean_keeps_results_and_environment(folder):
    kept = ["outputs/set/samples.npz", "outputs/__pycache__/x", "inputs/model.ckpt", "results/table1.md", ".venv/x"]
    removed = ["build/x", "eval/__pycache__/x.pyc", ".mypy_cache/x", "deepcache_reproduced.egg-info/x"]
    for name in kept + removed:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    planned = make(folder, "-n", "clean").stdout
    assert "rm -rf build" in planned
    assert all((folder / name).exists() for name in kept + removed)
    assert make(folder, "clean").returncode == 0
    assert [name for name in kept + removed if (folder / name).exists()] == kept
