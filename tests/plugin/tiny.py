"""Parts of stock pipelines: small, with random weights, the same at every call. Texts are given as embeddings."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

NOISE: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
TEXT = 16  # width of texts
POOLED = 8  # of SDXL's pooled texts
SIZE = 8  # of each of SDXL's sizes
CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
CROSS_UP, PLAIN_UP = "CrossAttnUpBlock2D", "UpBlock2D"

SD: dict[str, Any] = {
    "sample_size": 8,
    "norm_num_groups": 4,
    "block_out_channels": (8, 16),
    "down_block_types": (CROSS, PLAIN),
    "up_block_types": (PLAIN_UP, CROSS_UP),
    "cross_attention_dim": TEXT,
    "attention_head_dim": 2,
}
XL: dict[str, Any] = {
    **SD,
    "block_out_channels": (8, 16, 16),
    "down_block_types": (PLAIN, CROSS, CROSS),
    "up_block_types": (CROSS_UP, CROSS_UP, PLAIN_UP),
    "transformer_layers_per_block": (1, 1, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": SIZE,
    "projection_class_embeddings_input_dim": 6 * SIZE + POOLED,
}
REFINER = {**XL, "projection_class_embeddings_input_dim": 5 * SIZE + POOLED}
KOLORS = {**XL, "encoder_hid_dim": TEXT + 4, "encoder_hid_dim_type": "text_proj"}
MOTION = {**SD, "block_out_channels": (32, 32), "norm_num_groups": 32}  # as many groups in 0.24.0, whatever is said
UPSCALER = {**SD, "in_channels": 7, "num_class_embeds": 40, "only_cross_attention": (True, False)}


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def unet(layout: dict[str, Any], **changes: Any) -> Any:
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(**{**layout, **changes}).eval()


def vae() -> Any:
    """From pictures of 64 × 64 to latents of 8 × 8."""
    torch.manual_seed(2)
    layout: dict[str, Any] = {"block_out_channels": (4, 4, 4, 4), "norm_num_groups": 2, "sample_size": 64}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return diffusers.AutoencoderKL(**layout, **blocks).eval()


def sd_parts(layout: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Of a Stable Diffusion pipeline without texts."""
    return {
        "unet": unet(layout or SD, **changes),
        "vae": vae(),
        "text_encoder": None,
        "tokenizer": None,
        "scheduler": diffusers.DDIMScheduler(**NOISE),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def xl_parts(layout: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Of an SDXL pipeline without texts."""
    texts = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    scheduler = diffusers.EulerDiscreteScheduler(**NOISE)
    return {"unet": unet(layout or XL, **changes), "vae": vae(), "scheduler": scheduler, **texts}


def controlnet(of: Any, cls: str = "ControlNetModel", **changes: Any) -> Any:
    """A ControlNet that does something: no layer is zero."""
    torch.manual_seed(5)
    net = getattr(diffusers, cls).from_unet(of, conditioning_embedding_out_channels=(4, 8, 8, 8), **changes)
    for layer in (*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out):
        torch.nn.init.normal_(layer.weight, std=0.1)
    return net.eval()


def controlnet_union(of: Any) -> Any:
    """ControlNet-Union, whose constructor alone has its widths."""
    torch.manual_seed(5)
    names = set(diffusers.ControlNetUnionModel.__init__.__wrapped__.__code__.co_varnames)
    layout = {name: value for name, value in XL.items() if name in names}
    small = {"num_trans_channel": 8, "num_trans_head": 2, "num_proj_channel": 8, "num_control_type": 6}
    net = diffusers.ControlNetUnionModel(**layout, conditioning_embedding_out_channels=(4, 8, 8, 8), **small)
    net.load_state_dict(controlnet(of).state_dict(), strict=False)
    return net.eval()


def adapter(kind: str, channels: tuple[int, ...], downscale: int) -> Any:
    torch.manual_seed(6)
    return diffusers.T2IAdapter(3, list(channels), 1, downscale, kind).eval()


def motion_adapter() -> Any:
    torch.manual_seed(7)
    return diffusers.MotionAdapter(MOTION["block_out_channels"], motion_num_attention_heads=2).eval()


def text_encoder() -> Any:
    """Whose dtype some pipelines ask for, although it has nothing to encode."""
    torch.manual_seed(9)
    config = CLIPTextConfig(
        vocab_size=8, hidden_size=TEXT, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    return CLIPTextModel(config).eval()


def vision() -> Any:
    """An image encoder, of SVD or of an IP-Adapter."""
    torch.manual_seed(8)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, patch_size=56,
        projection_dim=32,
    )  # fmt: skip
    return CLIPVisionModelWithProjection(config).eval()


def svd_parts() -> dict[str, Any]:
    """Of a Stable Video Diffusion pipeline; its classes have 32 groups, so 32 channels are the least."""
    torch.manual_seed(4)
    video_unet = diffusers.UNetSpatioTemporalConditionModel(
        sample_size=8,
        block_out_channels=(32, 32),
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        num_attention_heads=(1, 1),
        cross_attention_dim=32,
        addition_time_embed_dim=SIZE,
        projection_class_embeddings_input_dim=3 * SIZE,
        num_frames=3,
    )
    video_vae = diffusers.AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 4, block_out_channels=(32,) * 4, layers_per_block=1, sample_size=64
    )
    return {
        "unet": video_unet.eval(),
        "vae": video_vae.eval(),
        "image_encoder": vision(),
        "scheduler": diffusers.EulerDiscreteScheduler(
            **NOISE, prediction_type="v_prediction", timestep_type="continuous", timestep_spacing="leading",
            use_karras_sigmas=True, sigma_min=0.002, sigma_max=700.0,
        ),
        "feature_extractor": CLIPImageProcessor(),
    }  # fmt: skip
