"""The published models: layout of the U-Net, how they are sampled, and where their weights are.

Layouts are those of Ho et al. 2020 (appendix B); skip types those of Song et al. 2021 (DDIM, appendix D). The files are
the moving averages of Ho et al.'s weights, which Patrick Esser converted for PyTorch (pesser/pytorch_diffusion).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Config:
    """A published model."""

    unet: Mapping[str, Any]  # arguments of UNet2DModel
    skip_type: str  # "quad" or "uniform": which timesteps a sampler with fewer steps takes, by default
    name: str  # what pytorch_diffusion calls the file
    file: str  # where DDIM's and pytorch_diffusion's scripts put it, below ~/.cache/diffusion_models_converted
    url: str
    md5: str

    @property
    def image_size(self) -> int:
        """Height and width in pixels."""
        return self.unet["sample_size"]


def _unet(sample_size: int, channels: tuple[int, ...], attention_level: int) -> dict[str, Any]:
    """Two resnets a level, and attention after each of them on one level."""
    down = ["DownBlock2D"] * len(channels)
    down[attention_level] = "AttnDownBlock2D"
    return {
        "sample_size": sample_size,
        "block_out_channels": channels,
        "down_block_types": tuple(down),
        "up_block_types": tuple(name.replace("Down", "Up") for name in reversed(down)),
        "downsample_padding": 0,  # in diffusers this means (0, 1, 0, 1), the original's padding
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
        "attention_head_dim": None,  # one head; the class's default, 8, has the same weights but another output
    }


_LSUN_UNET = _unet(256, (128, 128, 256, 256, 512, 512), attention_level=4)  # 113,673,219 parameters

CIFAR10 = Config(
    unet=_unet(32, (128, 256, 256, 256), attention_level=1),  # 35,746,307 parameters
    skip_type="quad",
    name="ema_cifar10",
    file="ema_diffusion_cifar10_model/model-790000.ckpt",
    url="https://heibox.uni-heidelberg.de/f/2e4f01e2d9ee49bab1d5/?dl=1",
    md5="1fa350b952534ae442b1d5235cce5cd3",
)
LSUN_BEDROOM = Config(
    unet=_LSUN_UNET,
    skip_type="uniform",
    name="ema_lsun_bedroom",
    file="ema_diffusion_lsun_bedroom_model/model-2388000.ckpt",
    url="https://heibox.uni-heidelberg.de/f/b95206528f384185889b/?dl=1",
    md5="1921fa46b66a3665e450e42f36c2720f",
)
LSUN_CHURCH = Config(
    unet=_LSUN_UNET,
    skip_type="uniform",
    name="ema_lsun_church",
    file="ema_diffusion_lsun_church_model/model-4432000.ckpt",
    url="https://heibox.uni-heidelberg.de/f/44ccb50ef3c6436db52e/?dl=1",
    md5="fdc68a23938c2397caba4a260bc2445f",
)

CONFIGS: dict[str, Config] = {"cifar10": CIFAR10, "bedroom": LSUN_BEDROOM, "church": LSUN_CHURCH}
