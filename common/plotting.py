"""Plots, drawn to files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .files import atomic_write


def pyplot() -> Any:
    """`matplotlib.pyplot`, set up to work without a display; imported late, since most runs draw nothing."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save_figure(figure: Any, path: Path, *, dpi: int) -> None:
    """Writes the figure to a file, whole or not at all, and closes it."""
    with atomic_write(path) as tmp_path:
        figure.savefig(tmp_path, dpi=dpi)
    pyplot().close(figure)
