"""The repository's files and folders, and the imports between them."""

import ast
import re
import subprocess
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
SCRIPTS = "scripts"  # all modules at the top level
LAYERS = [  # top to bottom: a folder imports only from those below it
    SCRIPTS, "webui", "dit", "asyncdiff", "benchmarks", "benchmarks/gpu", "apple", "comparison", "eval", "eval/paper",
    "eval/calibration", "eval/generation", "eval/metrics", "eval/counting", "eval/pages", "shapes", "ldm", "ddpm",
    "image_sets", "pipelines", "integrations", "integrations/comfyui", "integrations/a1111/scripts", "unets",
    "unets/cache", "common",
]  # fmt: skip
MOST_LINES = 400
MACHINE_PATHS = re.compile(r"(?<![\w.])/(work|root|tmp|home)/")

Arrows = dict[tuple[str, str], set[str]]

GUARD = 'if __name__ == "__main__":'  # the last lines of what can be run


def tracked_files() -> list[Path]:
    """Every file that is in the repository or is not ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    return [ROOT / name for name in listed if name and (ROOT / name).is_file()]


def product_files() -> list[Path]:
    """Every Python file but the tests'."""
    tests = ROOT / "tests"
    return [path for path in tracked_files() if path.suffix == ".py" and not path.is_relative_to(tests)]


def folder_of(path: Path, root: Path = ROOT) -> str:
    """The folder of a file, relative to the root."""
    parent = path.parent.relative_to(root).as_posix()
    return SCRIPTS if parent == "." else parent


def absolute_imports(path: Path) -> set[tuple[str, ...]]:
    """Names that a file imports absolutely, at its top or within a function: a.b.c is ("a", "b", "c")."""
    names: set[tuple[str, ...]] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {(*str(node.module).split("."), alias.name) for alias in node.names}
    return names


def relative_imports(path: Path, root: Path = ROOT) -> set[tuple[str, ...]]:
    """Names that it imports relatively, as full names from the root."""
    package = path.parent.relative_to(root).parts
    names: set[tuple[str, ...]] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            above = package[: len(package) - node.level + 1]
            names |= {(*above, *(node.module.split(".") if node.module else ()), alias.name) for alias in node.names}
    return names


def imported_files(path: Path, root: Path = ROOT) -> set[Path]:
    """Files of ours that a file imports; of a package, its `__init__.py`."""
    found = set()
    for name in absolute_imports(path) | relative_imports(path, root):
        name = ("unets", *name[1:]) if name[0] == "DeepCache" else name  # which is what it is once installed
        for end in (len(name), len(name) - 1):  # `from a.b import c` is of the module a.b.c or of a name in a.b
            module = root.joinpath(*name[:end])
            files = [file for file in (module.with_suffix(".py"), module / "__init__.py") if file.is_file()]
            if end and files:
                found.add(files[0])
                break
    return found - {path}


def arrows(files: Iterable[Path], root: Path = ROOT) -> Arrows:
    """From folder to folder, with the files that make the arrow."""
    found: Arrows = {}
    for path in files:
        for other in imported_files(path, root):
            pair = (folder_of(path, root), folder_of(other, root))
            if pair[0] != pair[1]:
                found.setdefault(pair, set()).add(path.relative_to(root).as_posix())
    return found


def upward(found: Arrows) -> Arrows:
    """The arrows that do not point down the layers."""
    return {pair: files for pair, files in found.items() if LAYERS.index(pair[0]) >= LAYERS.index(pair[1])}


def cycle(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """One cycle of these arrows, if there is any."""
    graph: dict[str, set[str]] = {}
    for a, b in pairs:
        graph.setdefault(a, set()).add(b)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def cycle_of_modules(files: Iterable[Path], root: Path = ROOT) -> list[str]:
    """One cycle of modules that import each other, if there is any."""
    pairs = ((path, other) for path in files for other in imported_files(path, root))
    return cycle((a.relative_to(root).as_posix(), b.relative_to(root).as_posix()) for a, b in pairs)


# --- the product -----------------------------------------------------------------------------------------------------


def module_of(path: Path) -> str:
    """The name under which a file is imported."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


COMMANDS = [module_of(path) for path in product_files() if GUARD in path.read_text(encoding="utf-8").splitlines()]
