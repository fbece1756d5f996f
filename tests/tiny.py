"""Small U-Nets of every forked layout, and small Stable Diffusion 1.5 pipelines.

The same at every call. What scripts need too is in `pipelines.tiny`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import diffusers
import numpy as np
import torch
from transformers import CLIPTokenizer

from pipelines import tiny
from pipelines.tiny import CROSS, CROSS_UP, PLAIN, PLAIN_UP

SD15: dict[str, Any] = {
    **tiny.SMALL,
    "block_out_channels": (8, 16, 16, 16),
    "cross_attention_dim": 24,
    "attention_head_dim": 2,
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "sd15": SD15,
    "sd21": {**tiny.SD21, "upcast_attention": True},
    "sdxl": tiny.SDXL,
    "ldm4": {
        **SD15,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": (8, 16, 24, 32),
        "down_block_types": (PLAIN, CROSS, CROSS, CROSS),
        "up_block_types": (CROSS_UP, CROSS_UP, CROSS_UP, PLAIN_UP),
        "attention_head_dim": 1,
    },
    "bk_sdm_base": {**SD15, "layers_per_block": 1},
    "bk_sdm_small": {**SD15, "layers_per_block": 1, "mid_block_type": None},
    "bk_sdm_tiny": {
        **SD15,
        "block_out_channels": (8, 16, 16),
        "layers_per_block": 1,
        "mid_block_type": None,
        "down_block_types": (CROSS, CROSS, CROSS),
        "up_block_types": (CROSS_UP, CROSS_UP, CROSS_UP),
    },
    "lcm": {**SD15, "time_cond_proj_dim": 12},
}


def stock_unet(layout: str = "sd15", **changes: Any) -> diffusers.UNet2DConditionModel:
    """diffusers' own class."""
    return tiny.unet(LAYOUTS[layout], **changes)


def inputs(layout: str = "sd15", height: int = 8, width: int = 8, batch: int = 2) -> dict[str, Any]:
    """What a call of that layout's U-Net needs, at any timestep."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    config = LAYOUTS[layout]
    arguments: dict[str, Any] = {
        "sample": random(batch, config.get("in_channels", 4), height, width),
        "timestep": torch.tensor(321),
        "encoder_hidden_states": random(batch, 7, config["cross_attention_dim"]),
    }
    if layout == "sdxl":
        sizes = torch.tensor([[64.0, 64, 0, 0, 64, 64]]).expand(batch, 6)
        arguments["added_cond_kwargs"] = {"text_embeds": random(batch, tiny.POOLED), "time_ids": sizes}
    if layout == "lcm":
        arguments["timestep_cond"] = random(batch, config["time_cond_proj_dim"])
    return arguments


@cache
def tokenizer() -> CLIPTokenizer:
    """The shipped model's."""
    return CLIPTokenizer.from_pretrained(tiny.TOKENIZER)


def parts(layout: str = "sd15", **changes: Any) -> dict[str, Any]:
    """Everything a Stable Diffusion 1.5 pipeline is built from; pictures of 64 × 64, latents of 8 × 8."""
    return {
        **tiny.sd21_parts(),
        "unet": stock_unet(layout, **changes),
        "scheduler": diffusers.PNDMScheduler(**tiny.NOISE, skip_prk_steps=True),
    }


def picture(seed: int = 3) -> torch.Tensor:
    """(1, 3, 64, 64) in [-1, 1]."""
    return torch.from_numpy(np.random.default_rng(seed).random((1, 3, 64, 64), np.float32)) * 2 - 1


def mask() -> torch.Tensor:
    """(1, 64, 64), 1 where to redraw."""
    redraw = torch.zeros(1, 64, 64)
    redraw[:, 16:40, 24:56] = 1
    return redraw
