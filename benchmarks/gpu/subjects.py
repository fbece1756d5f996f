"""The models under test: the published layouts with random weights made on the device, or small ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from ddpm.sampler import ddim_sample, noise_like, timesteps_of
from eval.counting.layouts import MODELS, Model
from eval.counting.macs import unet_inputs
from ldm.checkpoint import CIN256
from ldm.checkpoint import new_scheduler as ldm_scheduler
from pipelines import (
    LDMClassPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    StableVideoDiffusionPipeline,
    tiny,
)
from unets import fork_of
from unets.class_embedder import ClassEmbedder

from .settings import SETTINGS, TINY_STEPS, Settings

VAE: dict[str, Any] = {  # Stable Diffusion's, in all its versions; Stable Video Diffusion's has the same widths
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "layers_per_block": 2,
}
UP: dict[str, Any] = {"up_block_types": ("UpDecoderBlock2D",) * 4}
TINY_VQVAE: dict[str, Any] = {
    "block_out_channels": (8, 8), "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2, "norm_num_groups": 4, "num_vq_embeddings": 16,
}  # fmt: skip
TINY_CLASSES, CLASSES = 4, 1000
_TINY_SD15 = {**tiny.SD21, "attention_head_dim": 2, "use_linear_projection": False}
TINY: dict[str, Model] = {
    "sd15": Model(_TINY_SD15, (8, 8), tokens=7),
    "sd21": Model(tiny.SD21, (8, 8), tokens=7),
    "sdxl": Model(tiny.SDXL, (8, 8), tokens=7),
    "svd-xt": Model(
        {
            "sample_size": 8, "block_out_channels": (32, 32, 32, 32), "num_attention_heads": (1, 1, 1, 1),
            "cross_attention_dim": 32, "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 24,
        },
        (8, 8), diffusers.UNetSpatioTemporalConditionModel, tokens=1, frames=2,
    ),
    "ldm4": Model(
        {**_TINY_SD15, "in_channels": 3, "out_channels": 3, "attention_head_dim": 1, "cross_attention_dim": 16,
         "down_block_types": CIN256.unet["down_block_types"], "up_block_types": CIN256.unet["up_block_types"]},
        (8, 8), tokens=1,
    ),
    "ddpm-cifar10": Model(
        {**MODELS["ddpm-cifar10"].unet, "sample_size": 16, "block_out_channels": (8, 16, 16, 16), "norm_num_groups": 4},
        (16, 16), diffusers.UNet2DModel,
    ),
}  # fmt: skip


@dataclass
class Subject:
    """A model on the device and its full loop, from conditions to latents (or images)."""

    name: str
    model: Model
    pipe: Any  # a pipeline, or for DDPM, which has none, an object with its U-Net
    call: Callable[..., Tensor]  # see `run`
    steps: int
    settings: Settings = field(init=False)

    def __post_init__(self) -> None:
        self.settings = SETTINGS[self.name]

    @property
    def unet(self) -> Any:
        """The fork."""
        return self.pipe.unet

    @property
    def rows(self) -> int:
        """Rows of the U-Net's batch for each image: two with guidance."""
        return 1 if self.name == "ddpm-cifar10" else 2

    def run(self, batch: int, **arguments: Any) -> Tensor:
        """Latents (B, …) of the seeds 0 … B − 1. `arguments` are the pipeline's, such as `num_inference_steps`."""
        generators = [torch.Generator().manual_seed(seed) for seed in range(batch)]
        return self.call(batch, generators, **{"num_inference_steps": self.steps, **arguments})

    def inputs(self, rows: int, shrunk: int = 1) -> dict[str, Any]:
        """Random inputs of one U-Net call, with latents `shrunk` times smaller than the model's."""
        height, width = (side // shrunk for side in self.model.size)
        return unet_inputs(self.unet, height, width, batch=rows, tokens=self.model.tokens, frames=self.model.frames)


def make_subject(name: str, dtype: torch.dtype, device: torch.device, small: bool) -> Subject:
    """One of `SETTINGS`; the weights are the same at every call on the same device."""
    model = (TINY if small else MODELS)[name]
    torch.manual_seed(0)
    with torch.device(device):
        unet = fork_of(model.cls(**model.unet)).eval().to(device, dtype)
    pipe, call = PIPES.get(name, _stable_diffusion)(model, unet, small)  # the scheduler stays on the host
    if name != "ddpm-cifar10":
        pipe.to(device, dtype)
        pipe.set_progress_bar_config(disable=True)
    return Subject(name, model, pipe, call, TINY_STEPS if small else SETTINGS[name].steps)


def conditions(unet: Any, *shape: int) -> Tensor:
    """Embeddings, the same at every call and on every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), device="cpu").to(unet.device, unet.dtype)


def pixels(model: Model) -> dict[str, int]:
    """Height and width of the picture."""
    return {"height": model.size[0] * 8, "width": model.size[1] * 8}


def _stable_diffusion(model: Model, unet: Any, small: bool) -> tuple[Any, Callable[..., Tensor]]:
    pipe = StableDiffusionPipeline(
        vae=tiny.vae() if small else diffusers.AutoencoderKL(**VAE, **UP, sample_size=512), unet=unet,
        text_encoder=None, tokenizer=None, scheduler=diffusers.PNDMScheduler(**tiny.NOISE, skip_prk_steps=True),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip

    def call(batch: int, generators: Any, on: Any = pipe, output_type: str = "latent", **arguments: Any) -> Tensor:
        text = conditions(unet, 2, batch, model.tokens, model.unet["cross_attention_dim"])
        texts = {"prompt_embeds": text[0], "negative_prompt_embeds": text[1]}
        return on(**texts, **pixels(model), generator=generators, output_type=output_type, **arguments).images

    return pipe, call


def _xl(model: Model, unet: Any, small: bool) -> tuple[Any, Callable[..., Tensor]]:
    pipe = StableDiffusionXLPipeline(
        vae=tiny.vae() if small else diffusers.AutoencoderKL(**VAE, **UP, sample_size=1024, scaling_factor=0.13025),
        unet=unet, text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None,
        scheduler=diffusers.EulerDiscreteScheduler(**tiny.NOISE), add_watermarker=False,
    )  # fmt: skip
    pooled_width = model.unet["projection_class_embeddings_input_dim"] - 6 * model.unet["addition_time_embed_dim"]

    def call(batch: int, generators: Any, output_type: str = "latent", **arguments: Any) -> Tensor:
        text = conditions(unet, 2, batch, model.tokens, model.unet["cross_attention_dim"])
        pooled = conditions(unet, 2, batch, pooled_width)
        return pipe(
            prompt_embeds=text[0], negative_prompt_embeds=text[1], pooled_prompt_embeds=pooled[0],
            negative_pooled_prompt_embeds=pooled[1], **pixels(model), generator=generators, output_type=output_type,
            **arguments,
        ).images  # fmt: skip

    return pipe, call


def _video(model: Model, unet: Any, small: bool) -> tuple[Any, Callable[..., Tensor]]:
    parts = tiny.svd_parts()  # its image encoder is always the small one: it takes a thousandth of a loop
    vision = {**parts["image_encoder"].config.to_dict(), "projection_dim": unet.config.cross_attention_dim}
    pipe = StableVideoDiffusionPipeline(
        vae=parts["vae"] if small else diffusers.AutoencoderKLTemporalDecoder(**VAE, sample_size=768),
        unet=unet, scheduler=parts["scheduler"], feature_extractor=CLIPImageProcessor(),
        image_encoder=CLIPVisionModelWithProjection(CLIPVisionConfig(**vision)).eval(),
    )  # fmt: skip

    def call(batch: int, generators: Any, output_type: str = "latent", **arguments: Any) -> Tensor:
        size = pixels(model)
        image = Image.new("RGB", (size["width"], size["height"]), (90, 120, 200))
        frames = pipe(
            [image] * batch, **size, num_frames=model.frames, generator=generators, output_type=output_type,
            decode_chunk_size=4, **arguments,
        ).frames  # fmt: skip
        return frames if isinstance(frames, Tensor) else torch.stack(frames)

    return pipe, call


def _classes(model: Model, unet: Any, small: bool) -> tuple[Any, Callable[..., Tensor]]:
    vqvae = {**CIN256.vqvae, **(TINY_VQVAE if small else {})}
    classes = TINY_CLASSES if small else CLASSES
    pipe = LDMClassPipeline(
        diffusers.VQModel(**vqvae), ClassEmbedder(classes + 1, model.unet["cross_attention_dim"]), unet, ldm_scheduler()
    )

    def call(batch: int, generators: Any, output_type: str = "latent", **arguments: Any) -> Tensor:
        labels = [k % classes for k in range(batch)]
        output: Any = pipe(labels, generator=generators, output_type=output_type, **arguments)
        return output.images

    return pipe, call


def _pixels(model: Model, unet: Any, small: bool) -> tuple[Any, Callable[..., Tensor]]:
    def call(batch: int, generators: Any, num_inference_steps: int, **cache: Any) -> Tensor:
        noise = noise_like(torch.empty(batch, unet.config.in_channels, *model.size, device=unet.device), generators)
        return ddim_sample(unet, noise, timesteps_of(num_inference_steps, "quad"), **cache)

    return SimpleNamespace(unet=unet), call


PIPES: dict[str, Callable[[Model, Any, bool], tuple[Any, Callable[..., Tensor]]]] = {
    "sdxl": _xl, "svd-xt": _video, "ldm4": _classes, "ddpm-cifar10": _pixels,
}  # fmt: skip
