"""Identifies the code that made a score."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
BESIDES = (  # how images, prompts and statistics are read; which classes shapes has
    "common/arrays.py", "common/decoding.py", "common/reading.py", "image_sets/reading.py", "shapes/scenes.py",
)  # fmt: skip
LIBRARIES = ("torch", "open_clip_torch", "scipy")


@functools.cache
def code_version() -> str:
    """A digest (16 hexadecimal digits) of the code that scores images, and of its libraries' versions.

    Comments and docstrings don't change it. It may differ between versions of Python, which parse differently.
    """
    files = sorted(Path(__file__).parent.glob("*.py")) + [ROOT / name for name in BESIDES]
    versions = [f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES]
    return digest(((path.name, path.read_text(encoding="utf-8")) for path in files), versions)


def digest(sources: Iterable[tuple[str, str]], versions: Iterable[str]) -> str:
    """Of Python files, by name and text, and of versions."""
    total = hashlib.sha256()
    for name, text in sources:
        total.update(f"{name}\n{_code(text)}\n".encode())
    total.update("\n".join(versions).encode())
    return total.hexdigest()[:16]


class _WithoutDocstrings(ast.NodeTransformer):
    """Drops every string that stands by itself, since it does nothing."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str) else node


def _code(text: str) -> str:
    """The syntax tree, which has no comments and no layout."""
    return ast.dump(_WithoutDocstrings().visit(ast.parse(text)))
