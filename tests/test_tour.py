"""The notebook runs from top to bottom in a separate kernel, and stays small. TOUR=write renews its outputs."""

import os
import re
import shutil
import sys
from urllib.parse import urlsplit

import nbformat
import pytest
from nbclient import NotebookClient

from tests.layout import MACHINE_PATHS, ROOT

TOUR = ROOT / "docs" / "tour.ipynb"
MOST_BYTES = 300_000
SECONDS = 600  # of one cell, on a machine with other things to do
FEWER = {  # one picture where the notebook makes several
    "count=4": "count=1",
    "draw(pipe, 2, cache_interval": "draw(pipe, 1, cache_interval",
    "baseline[:2]": "baseline[:1]",
}


@pytest.fixture
def kernels(tmp_path, monkeypatch):
    """The only kernel is this Python, whatever is installed for the user."""
    spec = tmp_path / "kernels" / "python3"
    spec.mkdir(parents=True)
    arguments = f'["{sys.executable}", "-m", "ipykernel_launcher", "-f", "{{connection_file}}"]'
    (spec / "kernel.json").write_text(f'{{"argv": {arguments}, "display_name": "Python 3", "language": "python"}}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    for name in ("JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))


def printed(cell) -> str:
    return "".join(output.get("text", "") for output in cell.get("outputs", []) if output.get("name") == "stdout")


@pytest.mark.slow
def test_it_runs(kernels):
    notebook = nbformat.read(TOUR, as_version=4)
    writes = os.environ.get("TOUR") == "write"
    for several, one in {}.items() if writes else FEWER.items():
        assert any(several in cell.source for cell in notebook.cells), several
        for cell in notebook.cells:
            cell.source = cell.source.replace(several, one)
    NotebookClient(
        notebook, timeout=SECONDS, startup_timeout=SECONDS, resources={"metadata": {"path": str(TOUR.parent)}}
    ).execute()
    text = "\n".join(printed(cell) for cell in notebook.cells)
    assert "the plug-in's pictures are the fork's: True" in text
    plain, balanced = (float(number) for number in re.findall(r"as fast, ([\d.]+) dB", text))
    assert balanced > plain  # as it says above that cell
    neighbours = re.search(r"neighbouring steps: at least ([\d.]+)", text)
    assert neighbours is not None and float(neighbours[1]) > 0.9
    assert "# cache (3)" in text
    if writes:
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # when it ran
            if cell.cell_type == "code":  # without progress bars
                cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        notebook.metadata["language_info"] = {"name": "python"}
        nbformat.write(notebook, TOUR)


def test_it_is_small_whole_and_of_no_machine():
    notebook = nbformat.read(TOUR, as_version=4)
    nbformat.validate(notebook)
    assert TOUR.stat().st_size <= MOST_BYTES
    assert not MACHINE_PATHS.search(TOUR.read_text(encoding="utf-8"))
    assert notebook.metadata.kernelspec.name == "python3"
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs for cell in cells[1:]), (
        "outputs are missing: TOUR=write python -m pytest tests/test_tour.py"
    )
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]


def test_its_links_lead_somewhere():
    notebook = nbformat.read(TOUR, as_version=4)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert len(targets) > 3
    assert all((TOUR.parent / urlsplit(target).path).is_file() for target in targets)


def test_outside_a_checkout_it_says_what_is_missing(tmp_path, monkeypatch):
    """The first cell, where there is no repository: it names the variable, and clones and installs with it."""
    first = next(cell.source for cell in nbformat.read(TOUR, as_version=4).cells if cell.cell_type == "code")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(AssertionError, match="REPOSITORY"):
        exec(first, {})

    called = []

    def run(words, check):
        called.append(words[:2] if words[0] == "git" else words[1:4])
        if words[0] == "git":
            shutil.copytree(ROOT / "docs", words[-1])

    monkeypatch.setattr("subprocess.run", run)
    exec(first.replace('REPOSITORY = ""', 'REPOSITORY = "https://example.org/deepcache.git"'), {})
    assert called == [["git", "clone"], ["-m", "pip", "install"]]
