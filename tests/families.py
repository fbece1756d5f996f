"""Every forked pipeline on small models: stock, fork, and the arguments of its run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import diffusers
import numpy as np
import torch
from PIL import Image

import pipelines
from main import TextToVideoZeroPipeline
from pipelines import tiny
from pipelines.loading import new_scheduler

SIDE = 64  # pixels


def image(seed: int = 0, mode: str = "RGB") -> Image.Image:
    shape = (SIDE, SIDE, 3) if mode == "RGB" else (SIDE, SIDE)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8), mode)


def mask() -> Image.Image:
    white = Image.new("L", (SIDE, SIDE))
    white.paste(255, (8, 16, 40, 56))
    return white


class Family(NamedTuple):
    class_name: str
    parts: Callable[[], dict[str, Any]]
    arguments: dict[str, Any]
    guidance: str = "guidance_scale"

    def stock(self) -> Any:
        if self.class_name == "TextToVideoZeroPipeline":
            return TextToVideoZeroPipeline  # diffusers' own, mended
        return getattr(diffusers, self.class_name)

    def pair(self, scheduler: str = "ddim") -> tuple[Any, Any]:
        """The stock pipeline and the fork, each with its own parts."""
        pipes = []
        for cls in (self.stock(), getattr(pipelines, self.class_name)):
            parts = self.parts()
            parts["scheduler"] = new_scheduler(scheduler, parts["scheduler"].config)
            pipes.append(cls(**parts))
            pipes[-1].set_progress_bar_config(disable=True)
        return pipes[0], pipes[1]

    def run(self, pipe: Any, steps: int = 8, **extra: Any) -> np.ndarray:
        arguments = {**self.arguments, "num_inference_steps": steps, **extra}
        output = pipe(**arguments, generator=torch.Generator().manual_seed(1), output_type="np")
        return np.asarray(output.frames if hasattr(output, "frames") else output.images)


def controlnet_parts() -> dict[str, Any]:
    parts = tiny.sd21_parts()
    return {**parts, "controlnet": tiny.controlnet(parts["unet"])}


def two_controlnets() -> dict[str, Any]:
    parts = controlnet_parts()
    other = tiny.controlnet(parts["unet"])
    torch.nn.init.normal_(other.controlnet_mid_block.weight)
    return {**parts, "controlnet": [parts["controlnet"], other]}


PROMPT = {"prompt": "a large red ring"}
FAMILIES = {
    "sd": Family("StableDiffusionPipeline", tiny.sd21_parts, PROMPT),
    "sd-img2img": Family("StableDiffusionImg2ImgPipeline", tiny.sd21_parts, {**PROMPT, "image": image()}),
    "sd-inpaint": Family(
        "StableDiffusionInpaintPipeline", tiny.sd21_parts, {**PROMPT, "image": image(), "mask_image": mask()}
    ),
    "xl": Family("StableDiffusionXLPipeline", tiny.xl_parts, PROMPT),
    "xl-base": Family("StableDiffusionXLPipeline", tiny.xl_parts, {**PROMPT, "denoising_end": 0.8}),
    "xl-img2img": Family(
        "StableDiffusionXLImg2ImgPipeline", tiny.xl_parts, {**PROMPT, "image": image(), "strength": 0.8}
    ),
    "xl-refiner": Family(
        "StableDiffusionXLImg2ImgPipeline",
        tiny.xl_refiner_parts,
        {
            **PROMPT,
            "image": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2)),
            "denoising_start": 0.2,
        },
    ),
    "xl-inpaint-4": Family(
        "StableDiffusionXLInpaintPipeline",
        tiny.xl_parts,
        {**PROMPT, "image": image(), "mask_image": mask(), "strength": 0.9},
    ),
    "xl-inpaint-9": Family(
        "StableDiffusionXLInpaintPipeline",
        lambda: tiny.xl_parts(9),
        {**PROMPT, "image": image(), "mask_image": mask()},
    ),
    "svd": Family(
        "StableVideoDiffusionPipeline",
        tiny.svd_parts,
        {"image": image(), "height": SIDE, "width": SIDE, "num_frames": 3, "decode_chunk_size": 2},
        "max_guidance_scale",
    ),
    "t2v-zero": Family("TextToVideoZeroPipeline", tiny.sd21_parts, {**PROMPT, "video_length": 3, "t0": 2, "t1": 4}),
    "controlnet": Family("StableDiffusionControlNetPipeline", controlnet_parts, {**PROMPT, "image": image()}),
    "controlnets": Family(
        "StableDiffusionControlNetPipeline",
        two_controlnets,
        {
            **PROMPT,
            "image": [image(), image(1)],
            "controlnet_conditioning_scale": [0.7, 1.2],
            "control_guidance_end": [0.5, 1.0],
        },
    ),
    "controlnet-guess": Family(
        "StableDiffusionControlNetPipeline", controlnet_parts, {**PROMPT, "image": image(), "guess_mode": True}
    ),
}
NEW = [name for name in FAMILIES if not name.startswith("sd")]
