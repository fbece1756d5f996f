"""Small models with random weights in the layouts of the published ones, to try the forks without downloads.

Their pictures are noise. Weights are the same at every call.
"""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from common.shipped import SHAPES_SD

TOKENIZER = SHAPES_SD / "tokenizer"
NOISE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
SMALL: dict[str, Any] = {"sample_size": 8, "norm_num_groups": 4}
CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
CROSS_UP, PLAIN_UP = "CrossAttnUpBlock2D", "UpBlock2D"
TEXT_WIDTHS = (16, 24)  # of SDXL's two text encoders
POOLED = 16  # width of SDXL's pooled text
SIZE_WIDTH = 8  # of each of SDXL's sizes

SD21: dict[str, Any] = {
    **SMALL,
    "block_out_channels": (8, 16, 16, 16),
    "cross_attention_dim": TEXT_WIDTHS[1],
    "attention_head_dim": [1, 2, 4, 4],
    "use_linear_projection": True,
}
SDXL: dict[str, Any] = {
    **SMALL,
    "block_out_channels": (8, 16, 16),
    "down_block_types": (PLAIN, CROSS, CROSS),
    "up_block_types": (CROSS_UP, CROSS_UP, PLAIN_UP),
    "transformer_layers_per_block": [1, 2, 3],
    "attention_head_dim": [1, 2, 4],
    "cross_attention_dim": sum(TEXT_WIDTHS),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": SIZE_WIDTH,
    "projection_class_embeddings_input_dim": 6 * SIZE_WIDTH + POOLED,
}
SDXL_REFINER: dict[str, Any] = {
    **SDXL,
    "block_out_channels": (8, 16, 16, 16),
    "down_block_types": (PLAIN, CROSS, CROSS, PLAIN),
    "up_block_types": (PLAIN_UP, CROSS_UP, CROSS_UP, PLAIN_UP),
    "transformer_layers_per_block": 2,
    "attention_head_dim": [1, 2, 4, 4],
    "cross_attention_dim": TEXT_WIDTHS[1],
    "projection_class_embeddings_input_dim": 5 * SIZE_WIDTH + POOLED,
}


def unet(layout: dict[str, Any], **changes: Any) -> diffusers.UNet2DConditionModel:
    """A U-Net of one of the layouts above, with changes to its configuration."""
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(**{**layout, **changes}).eval()


def vae() -> diffusers.AutoencoderKL:
    """An autoencoder from pictures of 64 × 64 to latents of 8 × 8."""
    torch.manual_seed(2)
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 8, 8),
        norm_num_groups=2,
        sample_size=64,
    ).eval()


def text_encoder(width: int, projection: int | None = None) -> Any:
    """CLIP's text encoder, with the pooled output projected if `projection` is given."""
    torch.manual_seed(3)
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        projection_dim=projection or width,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def sd21_parts(in_channels: int = 4) -> dict[str, Any]:
    """The components of a Stable Diffusion 2.1 pipeline."""
    return {
        "unet": unet(SD21, in_channels=in_channels),
        "vae": vae(),
        "text_encoder": text_encoder(TEXT_WIDTHS[1]),
        "tokenizer": CLIPTokenizer.from_pretrained(TOKENIZER),
        "scheduler": diffusers.PNDMScheduler(**NOISE, skip_prk_steps=True, prediction_type="v_prediction"),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def xl_parts(in_channels: int = 4) -> dict[str, Any]:
    """The components of an SDXL pipeline."""
    return {
        "unet": unet(SDXL, in_channels=in_channels),
        "vae": vae(),
        "text_encoder": text_encoder(TEXT_WIDTHS[0]),
        "text_encoder_2": text_encoder(TEXT_WIDTHS[1], POOLED),
        "tokenizer": CLIPTokenizer.from_pretrained(TOKENIZER),
        "tokenizer_2": CLIPTokenizer.from_pretrained(TOKENIZER),
        "scheduler": diffusers.EulerDiscreteScheduler(**NOISE),
        "add_watermarker": False,
    }


def xl_refiner_parts() -> dict[str, Any]:
    """The components of SDXL's refiner: no first text encoder, and a score among the sizes."""
    return {
        **xl_parts(),
        "unet": unet(SDXL_REFINER),
        "text_encoder": None,
        "tokenizer": None,
        "requires_aesthetics_score": True,
    }


def svd_parts() -> dict[str, Any]:
    """The components of a Stable Video Diffusion pipeline with four frames."""
    torch.manual_seed(4)
    # Its classes have 32 groups in every normalisation, so 32 channels are the minimum.
    video_unet = diffusers.UNetSpatioTemporalConditionModel(
        sample_size=8,
        block_out_channels=(32, 32, 64, 64),
        num_attention_heads=(1, 1, 2, 2),
        cross_attention_dim=32,
        addition_time_embed_dim=SIZE_WIDTH,
        projection_class_embeddings_input_dim=3 * SIZE_WIDTH,
        num_frames=4,
    )
    video_vae = diffusers.AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 4, block_out_channels=(32,) * 4, layers_per_block=1, sample_size=64
    )
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        patch_size=56,
        projection_dim=32,
    )
    return {
        "unet": video_unet.eval(),
        "vae": video_vae.eval(),
        "image_encoder": CLIPVisionModelWithProjection(vision).eval(),
        "scheduler": diffusers.EulerDiscreteScheduler(
            **NOISE, prediction_type="v_prediction", timestep_type="continuous", timestep_spacing="leading",
            use_karras_sigmas=True, sigma_min=0.002, sigma_max=700.0,
        ),
        "feature_extractor": CLIPImageProcessor(),
    }  # fmt: skip


def controlnet(of: diffusers.UNet2DConditionModel) -> diffusers.ControlNetModel:
    """A ControlNet for pictures eight times the latents' size. No layer is zero, so it has an effect."""
    torch.manual_seed(5)
    # The default widths of the conditioning embedding are not small.
    net = diffusers.ControlNetModel.from_unet(of, conditioning_embedding_out_channels=(4, 8, 16, 32))
    for layer in (*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out):
        torch.nn.init.normal_(layer.weight, std=0.02)
    return net.eval()
