"""Small models of the real layouts with random weights, the same at every call."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import PNDMScheduler
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pipelines import tiny
from pipelines.tiny import CROSS, CROSS_UP, PLAIN, PLAIN_UP

SHAPES = Path(__file__).parent.parent / "assets" / "shapes-sd"

SMALL = {"sample_size": 8, "norm_num_groups": 4, "cross_attention_dim": 24, "attention_head_dim": 2}
LAYOUTS: dict[str, dict[str, Any]] = {
    "sd15": {"block_out_channels": (8, 16, 16, 16)},
    "sd21": {
        "block_out_channels": (8, 16, 16, 16),
        "attention_head_dim": [1, 2, 4, 4],
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    "sdxl": {
        "block_out_channels": (8, 16, 16),
        "down_block_types": (PLAIN, CROSS, CROSS),
        "up_block_types": (CROSS_UP, CROSS_UP, PLAIN_UP),
        "transformer_layers_per_block": [1, 2, 3],
        "attention_head_dim": [1, 2, 4],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 16,
    },
    "ldm4": {
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": (8, 16, 24, 32),
        "down_block_types": (PLAIN, CROSS, CROSS, CROSS),
        "up_block_types": (CROSS_UP, CROSS_UP, CROSS_UP, PLAIN_UP),
        "attention_head_dim": 1,
    },
    "bk_sdm_base": {"block_out_channels": (8, 16, 16, 16), "layers_per_block": 1},
    "bk_sdm_small": {"block_out_channels": (8, 16, 16, 16), "layers_per_block": 1, "mid_block_type": None},
    "bk_sdm_tiny": {
        "block_out_channels": (8, 16, 16),
        "layers_per_block": 1,
        "mid_block_type": None,
        "down_block_types": (CROSS, CROSS, CROSS),
        "up_block_types": (CROSS_UP, CROSS_UP, CROSS_UP),
    },
    "lcm": {"block_out_channels": (8, 16, 16, 16), "time_cond_proj_dim": 12},
}


def stock_unet(layout: str = "sd15", **changes: Any) -> diffusers.UNet2DConditionModel:
    """diffusers' own class."""
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(**{**SMALL, **LAYOUTS[layout], **changes}).eval()


def inputs(layout: str = "sd15", height: int = 8, width: int = 8, batch: int = 2) -> dict[str, Any]:
    """What a call of that layout's U-Net needs, at any timestep."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    arguments: dict[str, Any] = {
        "sample": random(batch, LAYOUTS[layout].get("in_channels", 4), height, width),
        "timestep": torch.tensor(321),
        "encoder_hidden_states": random(batch, 7, 24),
    }
    if layout == "sdxl":
        sizes = torch.tensor([[64.0, 64, 0, 0, 64, 64]]).expand(batch, 6)
        arguments["added_cond_kwargs"] = {"text_embeds": random(batch, 16), "time_ids": sizes}
    if layout == "lcm":
        arguments["timestep_cond"] = random(batch, 12)
    return arguments


@cache
def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(SHAPES / "tokenizer")


def parts(layout: str = "sd15", **changes: Any) -> dict[str, Any]:
    """Everything a Stable Diffusion pipeline is built from; pictures of 64 × 64, latents of 8 × 8."""
    unet = stock_unet(layout, **changes)
    vae = tiny.vae()
    text = CLIPTextConfig(
        vocab_size=len(tokenizer()),
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer().model_max_length,
    )
    return {
        "unet": unet,
        "vae": vae,
        "text_encoder": CLIPTextModel(text).eval(),
        "tokenizer": tokenizer(),
        "scheduler": PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
        ),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def picture(seed: int = 3) -> torch.Tensor:
    """(1, 3, 64, 64) in [-1, 1]."""
    return torch.from_numpy(np.random.default_rng(seed).random((1, 3, 64, 64), np.float32)) * 2 - 1


def mask() -> torch.Tensor:
    """(1, 64, 64), 1 where to redraw."""
    redraw = torch.zeros(1, 64, 64)
    redraw[:, 16:40, 24:56] = 1
    return redraw
