"""A small pipeline of LDM-4-G with random weights, the same at every call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import diffusers
import torch

from ldm.checkpoint import new_scheduler
from pipelines import LDMClassPipeline
from tests.tiny import stock_unet
from unets.class_embedder import ClassEmbedder

LABELS = [3, 0]


def parts() -> dict[str, Any]:
    """Its models, of diffusers' own classes; four classes, and latents of 8 × 8."""
    unet = stock_unet("ldm4", cross_attention_dim=16)
    vqvae = diffusers.VQModel(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), norm_num_groups=4, num_vq_embeddings=16, scaling_factor=0.5,
    )  # fmt: skip
    torch.nn.init.normal_(vqvae.quantize.embedding.weight)
    embedder = ClassEmbedder(num_classes=5, embedding_dim=16)
    return {"vqvae": vqvae.eval(), "class_embedder": embedder, "unet": unet, "scheduler": new_scheduler()}


def pipeline(plms: bool = False) -> LDMClassPipeline:
    """With DDIM, or PLMS."""
    pipe = LDMClassPipeline(**parts())
    if plms:
        pipe.scheduler = diffusers.PNDMScheduler.from_config(pipe.scheduler.config, skip_prk_steps=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe: Any, labels: Sequence[int] = LABELS, seeds: Iterable[int] = (0, 1), **arguments: Any) -> Any:
    """Images of these labels, each from its own seed's noise."""
    arguments = {"num_inference_steps": 10, "output_type": "np", **arguments}
    return pipe(labels, generator=[torch.Generator().manual_seed(s) for s in seeds], **arguments).images
