"""Files of schedules, as routers and searches write them, and their pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from common.files import write_json
from common.plotting import pyplot, save_figure
from common.reading import read_json

from .config import LayerCacheConfig

REMEDY = "write it with dit.train_router or dit.search"


def write_schedule(path: Path, cache: LayerCacheConfig, made_from: dict[str, Any], **more: Any) -> None:
    """A JSON file: `cache`, the description; `made_from`, the settings; and what else is known of it."""
    write_json(path, {"cache": cache.to_json(), "made_from": made_from, **more})


def read_schedule(path: Path) -> LayerCacheConfig:
    """The description in such a file.

    Raises:
        ValueError: no such file, or it is none of these.
    """
    content = read_json(path, dict, remedy=REMEDY)
    if "cache" not in content:
        raise ValueError(f"{path} holds no schedule; {REMEDY}")
    try:
        return LayerCacheConfig.from_json(content["cache"])
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None


def draw_schedule(path: Path, table: np.ndarray, title: str, scores: np.ndarray | None = None) -> None:
    """A picture of steps by layers, attention and MLP of each block apart: dark is computed, light is reused.

    Args:
        table: bool (T, 2 L).
        scores: (T, 2 L), of a router, 0 to 1; drawn as shades beside what its threshold made of them.
    """
    panels = {"computed": table.astype(float)} | ({"router's score": scores} if scores is not None else {})
    steps, depth = len(table), table.shape[1] // 2
    plt = pyplot()
    figure, axes = plt.subplots(
        2, len(panels), squeeze=False, sharex=True, figsize=(len(panels) * (2 + steps / 8), 2 + depth / 4)
    )
    for column, (name, values) in enumerate(panels.items()):
        for row, layer in enumerate(("attention", "MLP")):
            axis = axes[row, column]
            axis.imshow(values[:, row::2].T, vmin=0, vmax=1, cmap="Blues", aspect="auto", interpolation="nearest")
            axis.set_ylabel(f"{layer}, block")
            axis.set_title(name if row == 0 else "", fontsize=9)
        axes[1, column].set_xlabel("step")
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    save_figure(figure, path, dpi=110)
