"""The node: a model in, the same model with DeepCache out."""

from __future__ import annotations

from typing import Any

from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.patcher_extension import WrappersMP
from DeepCache.cache.config import CacheConfig

from .sampling import CachedSampling

KEY = "deepcache"
PERCENT = {"min": 0.0, "max": 1.0, "step": 0.01}


def _whole(default: int, least: int, most: int, tooltip: str) -> tuple[str, dict[str, Any]]:
    return "INT", {"default": default, "min": least, "max": most, "tooltip": tooltip}


class DeepCacheNode:
    """Most steps run only the shallow layers, and take the deep feature from the last full step."""

    CATEGORY = "model_patches/unet"
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "apply"
    DESCRIPTION = "DeepCache: most steps run only the U-Net's shallow layers."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "interval": _whole(3, 1, 1000, "N: every N-th step is full. 1 turns the cache off."),
                "branch": _whole(0, 0, 23, "Skip branch of the cached feature. 0 is fastest, deeper is more accurate."),
                "forecast": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 1.0, "step": 0.05, "tooltip": (
                    "How far the feature is extrapolated from the last two: 0 copies, as in the paper; 1 is linear."
                )}),
                "refresh_interval": _whole(0, 0, 1000, "A cheap refresh every so many steps after a full one. 0: off."),
                "refresh_branch": _whole(5, 1, 23, "The deeper branch at which a refresh step retrieves."),
                "start_percent": ("FLOAT", {"default": 0.0, **PERCENT, "tooltip": "Before it, every step is full."}),
                "end_percent": ("FLOAT", {"default": 1.0, **PERCENT, "tooltip": "After it, every step is full."}),
            }
        }  # fmt: skip

    def apply(
        self, model: Any, interval: int, branch: int, forecast: float, refresh_interval: int, refresh_branch: int,
        start_percent: float, end_percent: float,
    ) -> tuple[Any]:  # fmt: skip
        """Raises ValueError for a model without a U-Net, or a branch that it does not have."""
        unet = model.model.diffusion_model
        if not isinstance(unet, UNetModel):
            raise ValueError(
                f"DeepCache is for U-Nets such as SD 1.5, SDXL and SVD; {type(model.model).__name__} has a "
                f"{type(unet).__name__}: remove the node"
            )
        config = CacheConfig(
            interval,
            branch,
            forecast=forecast,
            refresh_interval=refresh_interval or None,
            refresh_branch_id=refresh_branch if refresh_interval else None,
        )
        cached = CachedSampling(config, unet, start_percent, end_percent)
        model = model.clone()
        for kind, wrapper in (
            (WrappersMP.OUTER_SAMPLE, cached.outer_sample),
            (WrappersMP.DIFFUSION_MODEL, cached.diffusion_model),
        ):
            model.remove_wrappers_with_key(kind, KEY)  # of an earlier DeepCache node
            model.add_wrapper_with_key(kind, KEY, wrapper)
        return (model,)


NODE_CLASS_MAPPINGS = {"DeepCache": DeepCacheNode}
NODE_DISPLAY_NAME_MAPPINGS = {"DeepCache": "DeepCache"}
