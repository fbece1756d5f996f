"""U-Nets of diffusers 0.24.0 with DeepCache written into their `forward`."""

import warnings
from typing import Any

# What diffusers 0.24.0 says of itself to a newer torch at every import; there is nothing for a user to do about it.
warnings.filterwarnings("ignore", message=".*_register_pytree_node.*", category=FutureWarning)

import diffusers  # noqa: E402

from .unet_2d_condition import UNet2DConditionModel  # noqa: E402
from .unet_spatio_temporal_condition import UNetSpatioTemporalConditionModel  # noqa: E402

__all__ = ["UNet2DConditionModel", "UNetSpatioTemporalConditionModel", "fork_of"]


def fork_of(unet: Any) -> Any:
    """The fork over the same modules and weights as a stock U-Net; a fork is its own.

    Raises:
        ValueError: if there is no fork for it.
    """
    if isinstance(unet, diffusers.UNet2DConditionModel):
        return UNet2DConditionModel.sharing(unet)
    if isinstance(unet, diffusers.UNetSpatioTemporalConditionModel):
        return UNetSpatioTemporalConditionModel.sharing(unet)
    raise ValueError(f"{type(unet).__name__} is not supported: there is no fork of it")
