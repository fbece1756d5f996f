"""Figure 2: the deep features of a run, and how similar those of its steps are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.files import atomic_write
from common.plotting import pyplot

THRESHOLD = 0.95  # Figure 2's


def features_of_run(run: Callable[[], Any], unet: Any, cache_branch_id: int) -> Tensor:
    """What enters u_m at each call of a forked U-Net within `run()`, in the order of the calls, on the CPU.

    Args:
        run: samples with `unet` as it likes, as long as every step is full (interval 1).
        cache_branch_id: m.

    Returns:
        (T, B, C, H, W) for T calls; for a video (T, B * frames, C, H, W); with guidance B is both halves of the batch.

    Raises:
        ValueError: no such branch; a run that makes retrieve steps, no step at all, or batches of several sizes.
    """
    unet.check_branch(cache_branch_id)
    features: list[Tensor] = []

    def ask(_: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if kwargs.get("cache_branch_id") is not None:
            raise ValueError("retrieve steps have no features of their own; run with cache_interval=1")
        return args, {**kwargs, "cache_branch_id": cache_branch_id}

    def take(_: Any, __: tuple, kwargs: dict, output: Any) -> Any:
        """Takes the feature, and gives the caller what it would have had."""
        given_tuple = isinstance(output, tuple)
        features.append((output[1] if given_tuple else output.cached_feature).detach().cpu())
        return output[:1] if given_tuple else type(output)(sample=output.sample)

    hooks = [
        unet.register_forward_pre_hook(ask, with_kwargs=True),
        unet.register_forward_hook(take, with_kwargs=True),
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    if len({feature.shape for feature in features}) != 1:
        raise ValueError("the run must call the U-Net, always with a batch of the same size")
    return torch.stack(features)


def similarity(features: Tensor) -> Tensor:
    """Cosine similarity of all pairs of steps, of each image of the batch by itself, then averaged.

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
    """Of each step, the share of the other steps whose similarity to it is above the threshold; (T,)."""
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
    with atomic_write(path) as tmp_path:
        figure.savefig(tmp_path, dpi=150)
    plt.close(figure)
