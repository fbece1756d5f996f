"""matplotlib for files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .files import atomic_write


def pyplot() -> Any:
    """`matplotlib.pyplot`, which then needs no screen; imported late, since most runs draw nothing."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save_figure(figure: Any, path: Path, *, dpi: int) -> None:
    """The figure as a file, whole or not at all; it is closed then."""
    with atomic_write(path) as tmp_path:
        figure.savefig(tmp_path, dpi=dpi)
    pyplot().close(figure)
