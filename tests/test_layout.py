"""The repository's layout: folders in layers, imports pointing down only, and nothing too long to read."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = "scripts"  # all modules at the top level
LAYERS = [  # top to bottom: a folder imports from those below it alone
    SCRIPTS, "benchmarks", "comparison", "eval", "eval/paper", "eval/calibration", "eval/generation", "eval/metrics",
    "eval/counting", "shapes", "ldm", "ddpm", "image_sets", "pipelines", "unets", "unets/cache", "common",
]  # fmt: skip
MOST_LINES = 400


def product_files() -> list[Path]:
    """Every Python file but the tests'."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    return [ROOT / name for name in listed if not name.startswith("tests/") and (ROOT / name).is_file()]


def folder_of(path: Path) -> str:
    """The folder of a file, relative to the root."""
    parent = path.parent.relative_to(ROOT).as_posix()
    return SCRIPTS if parent == "." else parent


def imported_files(path: Path) -> set[Path]:
    """Files of ours that a file imports, within functions too."""
    package = path.parent.relative_to(ROOT).parts
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = (*above, *(node.module or "").split(".")) if node.module else above
            names |= {base, *((*base, alias.name) for alias in node.names)}
    candidates = {ROOT.joinpath(*name) for name in names if name}
    return {c / "__init__.py" for c in candidates if (c / "__init__.py").is_file()} | {
        c.with_name(f"{c.name}.py") for c in candidates if c.with_name(f"{c.name}.py").is_file()
    }


def arrows() -> dict[tuple[str, str], list[str]]:
    """From folder to folder, with the files that make the arrow."""
    found: dict[tuple[str, str], list[str]] = {}
    for path in product_files():
        for other in imported_files(path):
            pair = (folder_of(path), folder_of(other))
            if pair[0] != pair[1]:
                found.setdefault(pair, []).append(path.relative_to(ROOT).as_posix())
    return found


def test_every_folder_has_its_place_in_the_layers():
    assert {folder_of(path) for path in product_files()} == set(LAYERS)


def test_the_walk_finds_imports():
    assert ("pipelines", "unets/cache") in arrows()
    assert ROOT / "unets" / "cache" / "schedule.py" in imported_files(ROOT / "unets" / "cache" / "config.py")


def test_imports_point_down_the_layers():
    upward = {pair: files for pair, files in arrows().items() if LAYERS.index(pair[0]) > LAYERS.index(pair[1])}
    # __init__.py of unets hands on what is in unets/cache and the other way round nothing is imported
    assert not upward


@pytest.mark.parametrize(
    "first, second", [("eval", "ddpm"), ("eval", "ldm"), ("eval", "shapes"), ("unets", "pipelines")]
)
def test_neighbours_do_not_import_each_other(first, second):
    tops = {(a.split("/")[0], b.split("/")[0]) for a, b in arrows()}
    assert not ((first, second) in tops and (second, first) in tops)


def test_no_file_is_too_long():
    assert not [path for path in product_files() if len(path.read_text(encoding="utf-8").splitlines()) > MOST_LINES]


def test_assets_are_data_only():
    assert not [path for path in product_files() if path.is_relative_to(ROOT / "assets")]


def test_every_module_of_eval_is_a_command():
    for path in (ROOT / "eval").glob("*.py"):
        if path.name != "__init__.py":
            assert re.search(r'if __name__ == "__main__":', path.read_text(encoding="utf-8")), path
