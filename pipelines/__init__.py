"""Pipelines of diffusers 0.24.0 with DeepCache written into their denoising loops."""

from .ldm_class import LDMClassPipeline
from .stable_diffusion import StableDiffusionPipeline
from .stable_diffusion_controlnet import StableDiffusionControlNetPipeline
from .stable_diffusion_img2img import StableDiffusionImg2ImgPipeline
from .stable_diffusion_inpaint import StableDiffusionInpaintPipeline
from .stable_diffusion_xl import StableDiffusionXLPipeline
from .stable_diffusion_xl_img2img import StableDiffusionXLImg2ImgPipeline
from .stable_diffusion_xl_inpaint import StableDiffusionXLInpaintPipeline
from .stable_video_diffusion import StableVideoDiffusionPipeline
from .text_to_video_zero import TextToVideoZeroPipeline

__all__ = [
    "LDMClassPipeline",
    "StableDiffusionControlNetPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
    "StableDiffusionXLPipeline",
    "StableVideoDiffusionPipeline",
    "TextToVideoZeroPipeline",
]
