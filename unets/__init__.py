"""U-Nets of diffusers 0.24.0 with DeepCache written into their `forward`."""

import warnings
from typing import Any

# What diffusers 0.24.0 says of itself to a newer torch at every import; there is nothing for a user to do about it.
warnings.filterwarnings("ignore", message=".*_register_pytree_node.*", category=FutureWarning)

import diffusers  # noqa: E402

from .unet_2d import UNet2DModel  # noqa: E402
from .unet_2d_condition import UNet2DConditionModel  # noqa: E402
from .unet_spatio_temporal_condition import UNetSpatioTemporalConditionModel  # noqa: E402

__all__ = ["UNet2DConditionModel", "UNet2DModel", "UNetSpatioTemporalConditionModel", "fork_class", "fork_of"]

FORKS: dict[type, Any] = {
    diffusers.UNet2DConditionModel: UNet2DConditionModel,
    diffusers.UNet2DModel: UNet2DModel,
    diffusers.UNetSpatioTemporalConditionModel: UNetSpatioTemporalConditionModel,
}


def fork_class(unet: Any) -> Any:
    """The fork's class for a U-Net, stock or fork.

    Raises:
        ValueError: if there is no fork for it.
    """
    for stock, fork in FORKS.items():
        if isinstance(unet, stock):
            return fork
    raise ValueError(f"{type(unet).__name__} is not supported: there is no fork of it")


def fork_of(unet: Any) -> Any:
    """The fork over the same modules and weights as a stock U-Net; a fork is its own. Raises as `fork_class`."""
    return fork_class(unet).sharing(unet)
