"""Pipelines of diffusers 0.24.0 with DeepCache written into their denoising loops."""

from .stable_diffusion import StableDiffusionPipeline
from .stable_diffusion_img2img import StableDiffusionImg2ImgPipeline
from .stable_diffusion_inpaint import StableDiffusionInpaintPipeline

__all__ = ["StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline", "StableDiffusionPipeline"]
