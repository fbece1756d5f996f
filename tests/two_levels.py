"""The families with a U-Net of two levels, for tests of what does not depend on its depth."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from pipelines import tiny
from tests.families import FAMILIES, Family

IMAGE_UNET: dict[str, Any] = {
    "layers_per_block": 1, "block_out_channels": (8, 16), "down_block_types": (tiny.CROSS, tiny.PLAIN),
    "up_block_types": (tiny.PLAIN_UP, tiny.CROSS_UP), "attention_head_dim": [1, 2], "transformer_layers_per_block": 1,
}  # fmt: skip
VIDEO_UNET: dict[str, Any] = {
    "layers_per_block": 1, "block_out_channels": (32, 32), "num_attention_heads": (1, 1),
    "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
    "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
}  # fmt: skip


def small(name: str) -> Family:
    """A family whose U-Net has two levels of one layer each: the skip branches 0 to 3."""
    family = FAMILIES[name]

    def parts() -> dict[str, Any]:
        made = family.parts()
        config = dict(made["unet"].config)
        torch.manual_seed(0)
        if name == "svd":
            return {**made, "unet": diffusers.UNetSpatioTemporalConditionModel(**{**config, **VIDEO_UNET}).eval()}
        made["unet"] = diffusers.UNet2DConditionModel(**{**config, **IMAGE_UNET}).eval()
        if "controlnet" in made:
            nets = [tiny.controlnet(made["unet"]) for _ in range(1 + (name == "controlnets"))]
            made["controlnet"] = nets if len(nets) > 1 else nets[0]
        return made

    return family._replace(parts=parts)
