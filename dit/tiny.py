"""Small diffusion transformers with random weights, to try the fork without a download. Their pictures show nothing."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from pipelines import tiny

LAYOUT: dict[str, Any] = {  # DiT-XL/2's made small: learned variance, 1,000 classes
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 4,
    "attention_bias": True,
    "sample_size": 8,
    "patch_size": 2,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
}


def transformer(**changes: Any) -> diffusers.Transformer2DModel:
    """diffusers' class, with changes to the layout."""
    torch.manual_seed(0)
    return diffusers.Transformer2DModel(**{**LAYOUT, **changes}).eval()


def parts(**changes: Any) -> dict[str, Any]:
    """Of a pipeline."""
    return {
        "transformer": transformer(**changes),
        "vae": tiny.vae(),
        "scheduler": diffusers.DDIMScheduler(clip_sample=False),
    }
