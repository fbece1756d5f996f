"""Every pipeline that the plug-in is tried on: how it is built, and how it is called."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import diffusers
import torch
from PIL import Image

from tests.plugin import tiny
from tests.plugin.tiny import POOLED, TEXT, random

SAMPLERS = {"ddim": "DDIMScheduler", "euler": "EulerDiscreteScheduler", "dpm++": "DPMSolverMultistepScheduler"}
SIDE = 64  # pixels
LATENTS = {"output_type": "latent"}


class Case(NamedTuple):
    class_name: str
    parts: Callable[[], dict[str, Any]]
    arguments: dict[str, Any]
    samplers: tuple[str, ...] = ("ddim", "euler")  # empty: its own alone
    pooled: bool = False  # SDXL's texts

    @property
    def is_there(self) -> bool:
        """Whether the installed diffusers has this pipeline."""
        return hasattr(diffusers, self.class_name)

    def build(self) -> Any:
        pipe = getattr(diffusers, self.class_name)(**self.parts())
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def run(self, pipe: Any, steps: int = 6, batch: int = 1, **extra: Any) -> torch.Tensor:
        """The latents that it makes."""
        texts = self.texts(batch) if "prompt_embeds" not in self.arguments else {}
        arguments = {**LATENTS, **texts, **self.arguments, "num_inference_steps": steps, **extra}
        output = pipe(**{k: v for k, v in arguments.items() if v is not None}, generator=generator())
        values = next(iter(output.values()))
        return torch.as_tensor(values)

    def texts(self, batch: int) -> dict[str, Any]:
        texts = {"prompt_embeds": random(batch, 5, TEXT), "negative_prompt_embeds": random(batch, 5, TEXT, seed=2)}
        if self.pooled:
            texts["pooled_prompt_embeds"] = random(batch, POOLED)
            texts["negative_pooled_prompt_embeds"] = random(batch, POOLED, seed=2)
        return texts


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def with_sampler(pipe: Any, name: str) -> None:
    pipe.scheduler = getattr(diffusers, SAMPLERS[name]).from_config(pipe.scheduler.config)


@cache
def stock(name: str) -> Any:
    """The pipeline of a case, made once: whatever a test does to it, it undoes."""
    return CASES[name].build()


def _controlnet(parts: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    made = parts()
    return {**made, "controlnet": tiny.controlnet(made["unet"])}


def _union() -> dict[str, Any]:
    made = tiny.xl_parts()
    return {**made, "controlnet": tiny.controlnet_union(made["unet"])}


def _without(parts: dict[str, Any], *names: str, **more: Any) -> dict[str, Any]:
    return {name: part for name, part in parts.items() if name not in names} | more


def _animatediff() -> dict[str, Any]:
    parts = _without(tiny.sd_parts(tiny.MOTION), "safety_checker", "requires_safety_checker", "feature_extractor")
    return {**parts, "motion_adapter": tiny.motion_adapter()}


def _marigold() -> dict[str, Any]:
    parts = _without(tiny.sd_parts(in_channels=8), "safety_checker", "requires_safety_checker", "feature_extractor")
    return {**parts, "prediction_type": "depth", "default_denoising_steps": 6, "default_processing_resolution": 0}


class _Marigold(Case):
    """Its text is always the empty one, which it keeps. Two pictures, one after the other."""

    def run(self, pipe: Any, steps: int = 6, batch: int = 1, **extra: Any) -> torch.Tensor:
        pipe.empty_text_embedding = random(1, 2, TEXT)
        arguments = {**self.arguments, "ensemble_size": 1, "batch_size": 1, **extra}
        return torch.as_tensor(
            pipe(num_inference_steps=steps, generator=generator(), output_latent=True, **arguments).latent
        )


PICTURE = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
IMAGE = Image.fromarray((PICTURE[0] * 255).byte().permute(1, 2, 0).numpy())
MASK = (torch.arange(SIDE) > SIDE / 2).float().expand(1, 1, SIDE, SIDE)
SCENE = random(1, 4, 8, 8, seed=4)  # latents of a picture
PAG = {"pag_applied_layers": ["down_blocks.0", "mid", "up_blocks.1"]}  # the blocks with attention
PAG_XL = {"pag_applied_layers": ["down_blocks.1", "down_blocks.2", "mid", "up_blocks.0", "up_blocks.1"]}
KOLORS_TEXT = {
    "prompt_embeds": random(1, 5, TEXT + 4),
    "negative_prompt_embeds": random(1, 5, TEXT + 4, seed=2),
    "pooled_prompt_embeds": random(1, POOLED),
    "negative_pooled_prompt_embeds": random(1, POOLED, seed=2),
}
CASES = {
    "sd": Case("StableDiffusionPipeline", tiny.sd_parts, {}),
    "sd-img2img": Case("StableDiffusionImg2ImgPipeline", tiny.sd_parts, {"image": SCENE, "strength": 0.9}),
    "sd-inpaint": Case(
        "StableDiffusionInpaintPipeline",
        lambda: tiny.sd_parts(in_channels=9),
        {"image": PICTURE, "mask_image": MASK, "height": SIDE, "width": SIDE},
    ),
    "xl": Case("StableDiffusionXLPipeline", tiny.xl_parts, {}, pooled=True),
    "xl-img2img": Case(
        "StableDiffusionXLImg2ImgPipeline", tiny.xl_parts, {"image": SCENE, "strength": 0.9}, pooled=True
    ),
    "xl-refiner": Case(
        "StableDiffusionXLImg2ImgPipeline",
        lambda: {**tiny.xl_parts(tiny.REFINER), "requires_aesthetics_score": True},
        {"image": SCENE, "denoising_start": 0.2},
        pooled=True,
    ),
    "xl-inpaint": Case(
        "StableDiffusionXLInpaintPipeline",
        tiny.xl_parts,
        {"image": PICTURE, "mask_image": MASK, "height": SIDE, "width": SIDE, "strength": 0.9},
        pooled=True,
    ),
    "svd": Case(
        "StableVideoDiffusionPipeline",
        tiny.svd_parts,
        {"image": IMAGE, "height": SIDE, "width": SIDE, "num_frames": 3, "prompt_embeds": None},
        samplers=(),  # its timesteps are Euler's
    ),
    "controlnet": Case("StableDiffusionControlNetPipeline", lambda: _controlnet(tiny.sd_parts), {"image": PICTURE}),
    "controlnet-guess": Case(
        "StableDiffusionControlNetPipeline",
        lambda: _controlnet(tiny.sd_parts),
        {"image": PICTURE, "guess_mode": True},
    ),
    "controlnet-xl": Case(
        "StableDiffusionXLControlNetPipeline", lambda: _controlnet(tiny.xl_parts), {"image": PICTURE}, pooled=True
    ),
    "controlnet-union": Case(
        "StableDiffusionXLControlNetUnionPipeline",
        _union,
        {"control_image": [PICTURE], "control_mode": [3]},
        pooled=True,
    ),
    "t2i-adapter": Case(
        "StableDiffusionAdapterPipeline",
        lambda: {**tiny.sd_parts(), "adapter": tiny.adapter("full_adapter", (8, 16), 8)},
        {"image": PICTURE, "height": SIDE, "width": SIDE},
    ),
    "t2i-adapter-xl": Case(
        "StableDiffusionXLAdapterPipeline",
        lambda: {**tiny.xl_parts(), "adapter": tiny.adapter("full_adapter_xl", (8, 16, 16, 16), 16)},
        {"image": PICTURE, "height": SIDE, "width": SIDE},
        pooled=True,
    ),
    "pag": Case("StableDiffusionPAGPipeline", lambda: {**tiny.sd_parts(), **PAG}, {"pag_scale": 2.0}),
    "pag-xl": Case(
        "StableDiffusionXLPAGPipeline", lambda: {**tiny.xl_parts(), **PAG_XL}, {"pag_scale": 2.0}, pooled=True
    ),
    "kolors": Case(
        "KolorsPipeline",
        lambda: _without(tiny.xl_parts(tiny.KOLORS), "text_encoder_2", "tokenizer_2"),
        KOLORS_TEXT,
    ),
    "lcm": Case(
        "LatentConsistencyModelPipeline",
        lambda: {
            **tiny.sd_parts(time_cond_proj_dim=12),
            "scheduler": diffusers.LCMScheduler(**tiny.NOISE, original_inference_steps=50),
        },
        {"negative_prompt_embeds": None},
        samplers=(),  # it is made for its own
    ),
    "pix2pix": Case(
        "StableDiffusionInstructPix2PixPipeline",
        lambda: {**tiny.sd_parts(in_channels=8), "text_encoder": tiny.text_encoder()},
        {"image": PICTURE},
    ),
    "animatediff": Case("AnimateDiffPipeline", _animatediff, {"num_frames": 3}),
    "marigold": _Marigold(
        "MarigoldDepthPipeline", _marigold, {"image": torch.cat([PICTURE, 1 - PICTURE])}, samplers=("ddim",)
    ),
    "upscaler": Case(
        "StableDiffusionUpscalePipeline",
        lambda: _without(
            tiny.sd_parts(tiny.UPSCALER),
            "requires_safety_checker",
            low_res_scheduler=diffusers.DDPMScheduler(),
            max_noise_level=39,
        ),
        {"image": PICTURE[..., :8, :8], "noise_level": 20},
    ),
}
