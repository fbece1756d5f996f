"""The U-Nets of the published models as data: arguments of their diffusers classes, and their input shapes.

Layouts are those of the published configuration files; `tests/test_macs.py` counts their weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch

from ddpm.configs import CIFAR10, LSUN_BEDROOM
from ldm.checkpoint import CIN256
from pipelines.directory import check_config, check_sizes
from unets import fork_of
from unets.forks import FORKS

from .macs import NONE, Exceptions

SD15: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
SD21: dict[str, Any] = {
    "sample_size": 96,
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
    "upcast_attention": True,
}
SDXL: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SVD: dict[str, Any] = {"num_attention_heads": (5, 10, 20, 20)}  # 0.24.0's default has another number of heads
BK_SDM_BASE: dict[str, Any] = {**SD15, "layers_per_block": 1}
BK_SDM_SMALL: dict[str, Any] = {**BK_SDM_BASE, "mid_block_type": None}
BK_SDM_TINY: dict[str, Any] = {
    **BK_SDM_SMALL,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3,
    "up_block_types": ("CrossAttnUpBlock2D",) * 3,
}

# LDM-4-G's own class GroupNorm32, which the counter that the paper used does not know: the normalisations of its
# resnets and of its output. Those of its transformers are plain ones, and counted.
GROUP_NORM_32 = Exceptions(uncounted=("*.resnets.*.norm1", "*.resnets.*.norm2", "conv_norm_out"))
DDPM_ATTENTION = Exceptions(as_convolutions=("*.attentions.*",))  # ermongroup/ddim's


@dataclass(frozen=True)
class Model:
    """A U-Net and the shapes of its inputs."""

    unet: Mapping[str, Any]  # arguments of its class
    size: tuple[int, int]  # height and width of the latents, or of the picture where there are none
    cls: Any = diffusers.UNet2DConditionModel
    tokens: int = 77  # of the text, or the one token of the class
    frames: int = 25  # of a video
    exceptions: Exceptions = NONE  # in the paper's convention

    def on_meta(self) -> Any:
        """The fork of the U-Net, in evaluation mode, without memory for its weights.

        Raises:
            ValueError: the configuration does not fit together.
        """
        try:
            with torch.device("meta"):
                return fork_of(self.cls(**self.unet)).to("meta").eval()
        except Exception as error:  # an inconsistent configuration can fail anywhere
            raise ValueError(
                f"no {self.cls.__name__} of diffusers 0.24.0 can be built from this configuration: {error}"
            ) from None


MODELS: dict[str, Model] = {
    "sd15": Model(SD15, (64, 64)),
    "sd21": Model(SD21, (96, 96)),
    "sdxl": Model(SDXL, (128, 128)),
    "svd": Model(SVD, (72, 128), diffusers.UNetSpatioTemporalConditionModel, tokens=1, frames=14),
    "svd-xt": Model(SVD, (72, 128), diffusers.UNetSpatioTemporalConditionModel, tokens=1, frames=25),
    "bk-sdm-base": Model(BK_SDM_BASE, (64, 64)),
    "bk-sdm-small": Model(BK_SDM_SMALL, (64, 64)),
    "bk-sdm-tiny": Model(BK_SDM_TINY, (64, 64)),
    "ddpm-cifar10": Model(CIFAR10.unet, (32, 32), diffusers.UNet2DModel, exceptions=DDPM_ATTENTION),
    "ddpm-lsun": Model(LSUN_BEDROOM.unet, (256, 256), diffusers.UNet2DModel, exceptions=DDPM_ATTENTION),
    "ldm4": Model(CIN256.unet, (64, 64), tokens=1, exceptions=GROUP_NORM_32),
}


def open_model(name: str) -> Any:
    """A `Model` by its name, or from the configuration of a U-Net: a path, or a hub id.

    Raises:
        ValueError: no such model, or a U-Net without a fork.
    """
    if name in MODELS:
        return MODELS[name]
    path = Path(name)
    candidates = [path, path / "config.json", path / "unet" / "config.json"]
    if file := next((c for c in candidates if c.is_file()), None):
        config = check_config(file)
    elif path.exists() or name.count("/") != 1:
        raise ValueError(f"there is no U-Net {name}; give a path, a hub id (owner/name) or one of {', '.join(MODELS)}")
    else:
        try:
            with warnings.catch_warnings(action="ignore"):  # huggingface_hub's of an argument that diffusers gives it
                config = diffusers.UNet2DConditionModel.load_config(name, subfolder="unet")
        except OSError:
            raise ValueError(
                f"cannot get the configuration of {name} from the hub; check the name, or give a path"
            ) from None
        check_sizes(name, config)
    if (class_name := config.get("_class_name")) not in (classes := {cls.__name__: cls for cls in FORKS}):
        raise ValueError(f"{name} has {class_name!r} as _class_name; give the config.json of a {' or '.join(classes)}")
    cls = classes[class_name]
    size = config.get("sample_size") or 64
    return Model(
        {k: v for k, v in config.items() if not k.startswith("_")},
        tuple(size) if isinstance(size, list) else (size, size),
        cls,
        frames=config.get("num_frames", 25),
        exceptions=DDPM_ATTENTION if cls is diffusers.UNet2DModel else NONE,
    )
