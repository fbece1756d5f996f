"""U-Nets of diffusers 0.24.0 with DeepCache written into their `forward`."""

import warnings

# What diffusers 0.24.0 says of itself to a newer torch at every import; there is nothing for a user to do about it.
warnings.filterwarnings("ignore", message=".*_register_pytree_node.*", category=FutureWarning)

from .unet_2d_condition import UNet2DConditionModel  # noqa: E402

__all__ = ["UNet2DConditionModel"]
