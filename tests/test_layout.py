"""The repository's layout: folders in layers, imports pointing down only, and nothing too long to read."""

import re
from pathlib import Path

import pytest

from tests.layout import (
    LAYERS,
    MACHINE_PATHS,
    MOST_LINES,
    ROOT,
    SCRIPTS,
    absolute_imports,
    arrows,
    cycle,
    cycle_of_modules,
    folder_of,
    imported_files,
    product_files,
    tracked_files,
    upward,
)


def test_every_folder_has_its_place_in_the_layers():
    assert {folder_of(path) for path in product_files()} == set(LAYERS)


def test_the_walk_finds_imports():
    assert ("pipelines", "unets/cache") in arrows(product_files())
    assert ROOT / "unets" / "cache" / "schedule.py" in imported_files(ROOT / "unets" / "cache" / "config.py")


def test_imports_point_down_the_layers():
    assert not upward(arrows(product_files()))


def test_no_two_folders_import_each_other():
    tops = {(a.split("/")[0], b.split("/")[0]) for a, b in arrows(product_files())}
    assert not cycle(pair for pair in tops if pair[0] != pair[1])
    assert not cycle(arrows(product_files()))


def test_no_two_modules_import_each_other():
    assert not cycle_of_modules(product_files())


def test_unets_can_be_installed_alone():
    """All that the plug-in needs is in that folder, which has another name once it is installed."""
    unets = ROOT / "unets"
    ours = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in product_files()} | {"DeepCache"}
    for path in product_files():
        if path.is_relative_to(unets):
            assert not [other for other in imported_files(path) if not other.is_relative_to(unets)], path
            assert not {name[0] for name in absolute_imports(path)} & ours, path


def test_no_file_is_too_long():
    assert not [path for path in product_files() if len(path.read_text(encoding="utf-8").splitlines()) > MOST_LINES]


def test_assets_are_data_only():
    assert not [path for path in product_files() if path.is_relative_to(ROOT / "assets")]


def test_every_module_of_eval_is_a_command_and_what_they_are_made_of_is_not():
    for path in (ROOT / "eval").rglob("*.py"):
        is_command = re.search(r'^if __name__ == "__main__":', path.read_text(encoding="utf-8"), re.MULTILINE)
        assert bool(is_command) == (folder_of(path) == "eval" and path.name != "__init__.py"), path


def test_no_file_names_a_path_of_a_machine():
    found = []
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # weights and pictures
            continue
        found += [f"{path.relative_to(ROOT)}: {line}" for line in text.splitlines() if MACHINE_PATHS.search(line)]
    assert not [line for line in found if not line.startswith("tests/test_layout.py")]


# --- the tests -------------------------------------------------------------------------------------------------------


def test_no_test_module_imports_another():
    """Shared helpers are in separate modules, so that no test runs twice."""
    found = {
        path.name: [other.name for other in imported_files(path) if other.name.startswith("test_")]
        for path in (ROOT / "tests").glob("*.py")
    }
    assert not {name: others for name, others in found.items() if others}


# --- these very checks -----------------------------------------------------------------------------------------------


def planted(tmp_path: Path, files: dict[str, str]) -> list[Path]:
    """These files under `tmp_path`, every folder a package."""
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        for folder in path.relative_to(tmp_path).parents:
            if folder != Path():
                (tmp_path / folder / "__init__.py").touch()
        path.write_text(text)
    return sorted(tmp_path.rglob("*.py"))


@pytest.mark.parametrize(
    "statement",
    [
        "import eval.paper.rows",
        "import eval.paper.rows as rows",
        "from eval.paper import rows",
        "from eval.paper.rows import ROWS",
        "def f():\n    from eval.paper.rows import ROWS",
        "if TYPE_CHECKING:\n    from eval.paper.rows import ROWS",
        "class A:\n    def f(self):\n        import eval.paper.rows",
    ],
)
def test_an_arrow_up_is_found_however_it_is_written(tmp_path, statement):
    files = planted(tmp_path, {"pipelines/base.py": statement, "eval/paper/rows.py": "ROWS = []"})
    assert upward(arrows(files, tmp_path)) == {("pipelines", "eval/paper"): {"pipelines/base.py"}}


@pytest.mark.parametrize("statement", ["from ..helper import x", "from .. import helper", "from ..helper import *"])
def test_an_arrow_up_is_found_where_it_is_relative(tmp_path, statement):
    files = planted(tmp_path, {"unets/cache/run.py": statement, "unets/helper.py": "x = 1"})
    assert upward(arrows(files, tmp_path)) == {("unets/cache", "unets"): {"unets/cache/run.py"}}


def test_an_arrow_up_to_a_script_or_a_package_is_found(tmp_path):
    files = planted(tmp_path, {"ddpm/sample.py": "import main", "main.py": "", "common/x.py": "from unets import Fork"})
    files = planted(tmp_path, {"unets/forks.py": ""})
    assert upward(arrows(files, tmp_path)).keys() == {("ddpm", SCRIPTS), ("common", "unets")}


def test_an_arrow_down_is_none(tmp_path):
    files = planted(
        tmp_path, {"eval/paper/rows.py": "from pipelines.base import x\nimport torch", "pipelines/base.py": ""}
    )
    assert arrows(files, tmp_path).keys() == {("eval/paper", "pipelines")}
    assert not upward(arrows(files, tmp_path))
    assert not cycle_of_modules(files, tmp_path)


def test_a_cycle_is_found(tmp_path):
    chain = {"ldm/a.py": "from ddpm import b", "ddpm/b.py": "def f():\n    import pipelines.c"}
    files = planted(tmp_path, {**chain, "pipelines/c.py": ""})
    assert not cycle(arrows(files, tmp_path))
    files = planted(tmp_path, {**chain, "pipelines/c.py": "def f():\n    from ldm.a import g"})
    assert set(cycle(arrows(files, tmp_path))) == {"ldm", "ddpm", "pipelines"}
    assert set(cycle_of_modules(files, tmp_path)) == {"ldm/a.py", "ddpm/b.py", "pipelines/c.py"}


def test_a_cycle_within_a_folder_is_found(tmp_path):
    files = planted(tmp_path, {"unets/a.py": "from .b import f", "unets/b.py": "def f():\n    from . import a"})
    assert set(cycle_of_modules(files, tmp_path)) == {"unets/a.py", "unets/b.py"}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('DATA = "/' + 'work/data"', True),  # in two parts, for it is none
        ("--out=/tmp/bash_jobs", True),
        ("file:///home/me/x", True),
        ("outputs/work/x", False),
        ("../tmp/x", False),
        ("https://example.org/home/x", False),
    ],
)
def test_a_path_of_a_machine_is_told_from_others(line, found):
    assert bool(MACHINE_PATHS.search(line)) == found
