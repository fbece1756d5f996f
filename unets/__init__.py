"""U-Nets of diffusers 0.24.0 with DeepCache written into their `forward`, the method, and the plug-in.

`pip install` installs this folder alone, as the package `DeepCache`. Names are imported on first use: the method and
`ldm` only need torch, so programs without diffusers can use them too.
"""

import importlib
import warnings
from typing import TYPE_CHECKING, Any

# diffusers 0.24.0 triggers this on every import with a newer torch; a user can do nothing about it.
warnings.filterwarnings("ignore", message=".*_register_pytree_node.*", category=FutureWarning)

if TYPE_CHECKING:
    from .cache.config import CacheConfig
    from .forks import fork_class, fork_of
    from .helper import DeepCacheSDHelper
    from .unet_2d import UNet2DModel
    from .unet_2d_condition import UNet2DConditionModel
    from .unet_spatio_temporal_condition import UNetSpatioTemporalConditionModel

__all__ = [
    "CacheConfig",
    "DeepCacheSDHelper",
    "UNet2DConditionModel",
    "UNet2DModel",
    "UNetSpatioTemporalConditionModel",
    "fork_class",
    "fork_of",
]

_MODULES = {
    "CacheConfig": "cache.config",
    "DeepCacheSDHelper": "helper",
    "UNet2DConditionModel": "unet_2d_condition",
    "UNet2DModel": "unet_2d",
    "UNetSpatioTemporalConditionModel": "unet_spatio_temporal_condition",
    "fork_class": "forks",
    "fork_of": "forks",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f".{_MODULES[name]}", __name__)
    except ModuleNotFoundError as error:
        if error.name not in ("accelerate", "diffusers"):
            raise
        raise ImportError(f"{name} needs {error.name}, which is not installed; run: pip install {error.name}") from None
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
