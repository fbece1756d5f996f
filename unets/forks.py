"""The fork of each diffusers U-Net class."""

from __future__ import annotations

from typing import Any

import diffusers

from .unet_2d import UNet2DModel
from .unet_2d_condition import UNet2DConditionModel
from .unet_motion import UNetMotionModel
from .unet_spatio_temporal_condition import UNetSpatioTemporalConditionModel

FORKS: dict[type, Any] = {
    diffusers.UNet2DConditionModel: UNet2DConditionModel,
    diffusers.UNet2DModel: UNet2DModel,
    diffusers.UNetMotionModel: UNetMotionModel,
    diffusers.UNetSpatioTemporalConditionModel: UNetSpatioTemporalConditionModel,
}


def stock_class(unet: Any) -> Any:
    """diffusers' class of a U-Net, stock or fork.

    Raises:
        ValueError: if it has no fork.
    """
    for stock in FORKS:
        if isinstance(unet, stock):
            return stock
    raise ValueError(f"{type(unet).__name__} is not supported: it has no fork; run it without DeepCache")


def fork_class(unet: Any) -> Any:
    """The fork's class for a U-Net, stock or fork. Raises as `stock_class`."""
    return FORKS[stock_class(unet)]


def fork_of(unet: Any) -> Any:
    """A fork that shares a stock U-Net's modules and weights; a fork is returned as it is. Raises as `stock_class`."""
    return fork_class(unet).sharing(unet)
