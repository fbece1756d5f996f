"""Figure 2: the deep features of a run, and how similar those of its steps are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.plotting import pyplot, save_figure
from unets.cache.observe import observed_calls

THRESHOLD = 0.95  # Figure 2's


def features_of_run(run: Callable[[], object], unet: Any, cache_branch_id: int) -> Tensor:
    """What enters u_m from below at each call of a forked U-Net within `run()`, in order, on the CPU.

    Args:
        run: samples with `unet`, with every step full.
        cache_branch_id: m.

    Returns:
        (T, B, C, H, W) for T calls; for a video (T, B * frames, C, H, W); with guidance B is both halves of the batch.

    Raises:
        ValueError: no such branch; a run with a cache of its own, no call at all, or batches of several sizes.
    """
    features: list[Tensor] = []

    def see(_inputs: dict[str, Any], _noise: Tensor, feature: Tensor) -> None:
        features.append(feature.detach().cpu())

    with observed_calls(unet, cache_branch_id, see):
        run()
    if len({feature.shape for feature in features}) != 1:
        raise ValueError("the run must call the U-Net, always with a batch of the same size")
    return torch.stack(features)


def similarity(features: Tensor) -> Tensor:
    """Cosine similarity of all pairs of steps, computed for each image of the batch and averaged.

    Args:
        features: (T, B, …)

    Returns:
        (T, T) in float64.
    """
    total = torch.zeros(len(features), len(features), dtype=torch.float64)
    for k in range(features.shape[1]):
        image = torch.nn.functional.normalize(features[:, k].flatten(1).double())  # (T, C * H * W)
        total += image @ image.T
    return total / features.shape[1]


def share_above(matrix: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """The share of the other steps whose similarity to each step is above the threshold (T,)."""
    others = ~torch.eye(len(matrix), dtype=torch.bool)
    return ((matrix > threshold) & others).sum(1).double() / max(1, len(matrix) - 1)


def plot(matrix: np.ndarray, share: np.ndarray, title: str, path: Path) -> None:
    """Figure 2: the heat map, and below it the share of similar steps."""
    plt = pyplot()
    figure, (heat, curve) = plt.subplots(
        2, 1, figsize=(5, 6.4), height_ratios=(3, 1), layout="constrained", sharex=True
    )
    image = heat.imshow(matrix, vmin=min(0.0, float(matrix.min())), vmax=1, aspect="auto", cmap="viridis")
    figure.colorbar(image, ax=heat, label="cosine similarity")
    heat.set(title=title, ylabel="step")
    curve.plot(100 * share, color="#4c78a8")
    curve.set(xlabel="step", ylabel=f"% of steps\nabove {THRESHOLD}", ylim=(0, 105))
    curve.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path, dpi=150)
