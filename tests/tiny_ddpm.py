"""Small U-Nets of DDPM with random weights, the same at every call."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import Tensor

LAYOUTS: dict[str, dict[str, Any]] = {
    "cifar10": {
        "sample_size": 16,
        "block_out_channels": (8, 16, 16, 16),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    },
    "lsun": {
        "sample_size": 32,
        "block_out_channels": (8, 8, 16, 16, 24, 24),
        "down_block_types": ("DownBlock2D",) * 4 + ("AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * 4,
    },
}


def stock_unet(layout: str = "cifar10") -> diffusers.UNet2DModel:
    """diffusers' own class."""
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        **LAYOUTS[layout], downsample_padding=0, flip_sin_to_cos=False, freq_shift=1, norm_eps=1e-6,
        norm_num_groups=4, attention_head_dim=None,
    ).eval()  # fmt: skip


def sample(layout: str = "cifar10", seed: int = 1, batch: int = 2) -> Tensor:
    """Noise (batch, 3, side, side) to start from."""
    side = LAYOUTS[layout]["sample_size"]
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))


class Uncached:
    """A stock U-Net in place of a fork. Every call is full; `position` is the number of calls before it."""

    dtype = torch.float32

    def __init__(self, unet: diffusers.UNet2DModel) -> None:
        self.unet = unet
        self.position = 0

    def check_branch(self, branch: int) -> None:
        """There is nothing to check."""

    def __call__(self, x: Tensor, t: Any, **_: Any) -> Any:
        output = self.unet(x, t)
        self.position += 1
        return output
