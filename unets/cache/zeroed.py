"""The ablation of the paper's Table 5: retrieve steps get zeros instead of the cached feature."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def zero_cached_features(unet: nn.Module) -> Any:
    """Zeros the feature that a forked U-Net retrieves, until `remove()` is called on the returned handle."""

    def zero(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        feature = kwargs.get("cached_feature")
        return args, kwargs if feature is None else {**kwargs, "cached_feature": torch.zeros_like(feature)}

    return unet.register_forward_pre_hook(zero, with_kwargs=True)
