"""LDM-4-G on ImageNet 256 × 256: CompVis's cin256-v2, model.ckpt, into diffusers' classes.

The file holds the U-Net (688 tensors), the first stage (205), the class embedding and the noise schedule.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, VQModel
from torch import Tensor

from common.safe_load import build, check_shapes, is_state_dict, read_checkpoint, shapes_of
from ddpm.checkpoint import original_name, original_shape
from pipelines.ldm_class import LDMClassPipeline
from pipelines.loading import load_pipeline as load_directory
from unets import UNet2DConditionModel
from unets.class_embedder import ClassEmbedder

URL = "https://ommer-lab.com/files/latent-diffusion/nitro/cin/model.ckpt"
SIZE = 1_827_378_153  # bytes


@dataclass(frozen=True)
class Layout:
    """The arguments of the three models."""

    unet: Mapping[str, Any]
    vqvae: Mapping[str, Any]
    class_embedder: Mapping[str, Any]


CIN256 = Layout(
    unet={  # 400,920,579 parameters
        "sample_size": 64,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": (192, 384, 576, 960),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 2,
        "attention_head_dim": 1,  # one head: in diffusers 0.24.0 the argument is the number of heads here
        "cross_attention_dim": 512,
    },
    vqvae={  # 55,322,782 parameters
        "sample_size": 256,
        "block_out_channels": (128, 256, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "layers_per_block": 2,
        "latent_channels": 3,
        "num_vq_embeddings": 8192,
        "scaling_factor": 1.0,
    },
    class_embedder={"num_classes": 1001, "embedding_dim": 512},  # the last class is the unconditional one
)

CLASSES: dict[str, Any] = {"unet": UNet2DConditionModel, "vqvae": VQModel, "class_embedder": ClassEmbedder}
PREFIXES = {"unet": "model.diffusion_model.", "vqvae": "first_stage_model.", "class_embedder": "cond_stage_model."}

SCHEDULE = [  # buffers of the noise schedule, which all follow from the betas
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
    "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2", "lvlb_weights",
]  # fmt: skip

RESNET_NAMES = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
MIDDLE = {("resnets", 0): 0, ("attentions", 0): 1, ("resnets", 1): 2}


def new_scheduler() -> DDIMScheduler:
    """Square roots of the betas linear from √0.0015 to √0.0195; timesteps 1, 5, …, 997 for 250 steps."""
    return DDIMScheduler(
        beta_start=0.0015,
        beta_end=0.0195,
        beta_schedule="scaled_linear",
        steps_offset=1,
        set_alpha_to_one=False,
        clip_sample=False,
    )


def unet_name(name: str, unet: Mapping[str, Any]) -> str:
    """CompVis's name of a weight of the U-Net, from its name in diffusers.

    CompVis counts `input_blocks` and `output_blocks` through all levels: a level of L layers has L + 1 of each. Each
    is a list of resnet, transformer if there is one, and upsampler if there is one.
    """
    module, _, parameter = name.rpartition(".")
    if module in UNET_ENDS:
        return f"{UNET_ENDS[module]}.{parameter}"
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", name):
        kind, layer, rest = match[1], int(match[2]), match[3]
        prefix = f"middle_block.{MIDDLE[kind, layer]}"
    else:
        match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name)
        if match is None:
            raise ValueError(f"{name} is a weight that LDM-4-G does not have")
        way, block, kind, layer, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
        layers = unet["layers_per_block"]
        if kind == "downsamplers":
            return f"input_blocks.{(block + 1) * (layers + 1)}.0.op.{parameter}"
        if kind == "upsamplers":
            behind = 2 if "CrossAttn" in unet["up_block_types"][block] else 1
            return f"output_blocks.{block * (layers + 1) + layers}.{behind}.conv.{parameter}"
        number = block * (layers + 1) + layer
        prefix = f"input_blocks.{1 + number}" if way == "down" else f"output_blocks.{number}"
        prefix += ".0" if kind == "resnets" else ".1"
    if kind == "resnets":
        part, _, rest = rest.partition(".")
        rest = f"{RESNET_NAMES[part]}.{rest}"
    return f"{prefix}.{rest}"  # inside a transformer the names are the same


def original_names(layout: Layout) -> dict[str, dict[str, tuple[str, torch.Size, torch.Size]]]:
    """For each model and each of its weights in diffusers: CompVis's full name, CompVis's shape, diffusers' shape."""
    names: dict[str, dict[str, tuple[str, torch.Size, torch.Size]]] = {}
    for model, cls in CLASSES.items():
        config = getattr(layout, model)
        names[model] = {}
        for name, shape in shapes_of(cls, config).items():
            their_name, their_shape = name, shape
            if model == "unet":
                their_name = unet_name(name, config)
            elif model == "vqvae":
                their_name = original_name(name, len(config["block_out_channels"]))
                their_shape = original_shape(name, shape)
            names[model][name] = (PREFIXES[model] + their_name, their_shape, shape)
    return names


def to_diffusers(
    state: Mapping[str, Tensor], layout: Layout = CIN256, source: str | Path = "the state dict"
) -> dict[str, dict[str, Tensor]]:
    """The weights of the three models, under diffusers' names. From the noise schedule only the betas are read.

    Raises:
        ValueError: naming the first three weights that are missing, unexpected, or of another shape; or other betas.
    """
    names = original_names(layout)
    weights = {name: weight for name, weight in state.items() if name not in SCHEDULE}
    check_shapes(weights, {theirs: shape for model in names.values() for theirs, shape, _ in model.values()}, source)
    betas = new_scheduler().betas
    if "betas" in state and not (
        state["betas"].shape == betas.shape and torch.allclose(state["betas"].float(), betas, rtol=1e-4)  # both rounded
    ):
        raise ValueError(f"{source} was trained with another noise schedule; give the checkpoint of cin256-v2")
    return {
        model: {name: weights[theirs].reshape(shape) for name, (theirs, _, shape) in entries.items()}
        for model, entries in names.items()
    }


def load_pipeline(path: str | Path, dtype: torch.dtype = torch.float32, layout: Layout = CIN256) -> LDMClassPipeline:
    """The pipeline on the CPU, from CompVis's model.ckpt or a diffusers directory, such as `ldm.convert` writes.

    Args:
        layout: of the checkpoint; a directory has its own.

    Raises:
        ValueError: no such file, not a checkpoint, or of another architecture.
    """
    path = Path(path)
    if path.is_dir():
        return load_directory(LDMClassPipeline, path, dtype=dtype)
    content = read_checkpoint(path, remedy=f"download it again from {URL} ({SIZE:,} bytes)")
    state: dict[str, Tensor] = content.get("state_dict", {}) if isinstance(content, dict) else {}
    if not is_state_dict(state):
        raise ValueError(f"{path} has no state_dict; give the model.ckpt of CompVis's cin256-v2, available from {URL}")
    weights = to_diffusers(state, layout, path)
    models = {model: build(cls, getattr(layout, model), weights[model], dtype) for model, cls in CLASSES.items()}
    return LDMClassPipeline(**models, scheduler=new_scheduler())
