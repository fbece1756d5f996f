"""U-Nets of diffusers 0.24.0 with DeepCache written into their `forward`, the method, and the plug-in.

All that the plug-in needs is in this folder, which is what `pip install` installs, under the name `DeepCache`.
"""

import warnings

# diffusers 0.24.0 triggers this on every import with a newer torch; a user can do nothing about it.
warnings.filterwarnings("ignore", message=".*_register_pytree_node.*", category=FutureWarning)

from .cache.config import CacheConfig  # noqa: E402
from .forks import fork_class, fork_of  # noqa: E402
from .helper import DeepCacheSDHelper  # noqa: E402
from .unet_2d import UNet2DModel  # noqa: E402
from .unet_2d_condition import UNet2DConditionModel  # noqa: E402
from .unet_spatio_temporal_condition import UNetSpatioTemporalConditionModel  # noqa: E402

__all__ = [
    "CacheConfig",
    "DeepCacheSDHelper",
    "UNet2DConditionModel",
    "UNet2DModel",
    "UNetSpatioTemporalConditionModel",
    "fork_class",
    "fork_of",
]
