"""Images of a set of prompts with Stable Diffusion: their settings, and the run that makes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor

from common.device import resolve_dtype
from common.environment import versions
from common.files import write_text
from common.shipped import GUIDANCE, SHAPES_SD
from image_sets.batches import Batch, digest
from image_sets.generate import Run, device_of_process
from image_sets.sets import ImageSet
from pipelines import StableDiffusionPipeline
from pipelines.loading import check_steps, load_pipeline
from unets.cache.config import CacheConfig

from .prompts import open_prompts


@dataclass(frozen=True)
class Settings:
    """The settings that the images of a set are made with."""

    model: str | None = None  # diffusers directory or hub id; None: the shipped model
    variant: str | None = None  # of the weights
    prompts: str = "shapes"
    negative_prompt: str | None = None
    scheduler: str = "plms"
    steps: int = 50
    guidance_scale: float | None = None  # None: the default for the model
    height: int | None = None  # pixels; None: the model's own
    width: int | None = None
    rounding: str = "nearest"
    cache: CacheConfig = field(default_factory=CacheConfig)
    cache_label: str | None = None  # in the folder's name, instead of the cache's own name
    seed: int = 0
    noise_period: int | None = None  # image k starts from the noise of image k modulo this
    dtype: str = "float32"


def make_images(pipe: Any, prompts: list[str], generators: list[torch.Generator], **arguments: Any) -> Tensor:
    """One image per prompt, float64 (B, 3, H, W) in [−1, 1] on the CPU. `arguments` are the pipeline's.

    A negative prompt is shared by all. The pipeline returns [0, 1]; in float64 conversion and inverse are exact.
    """
    if (negative := arguments.pop("negative_prompt", None)) is not None:
        arguments["negative_prompt"] = [negative] * len(prompts)
    (images, *_) = pipe(prompt=prompts, generator=generators, output_type="pt", return_dict=False, **arguments)
    return images.cpu().double() * 2 - 1


def write_prompts(out: Path, texts: list[str]) -> None:
    """Writes `prompts.txt`, one line for each image."""
    write_text(out / "prompts.txt", "".join(f"{text}\n" for text in texts))


def prepare(settings: Settings, *, device: torch.device, out: Path | None = None, quiet: bool = False) -> Run:
    """Loads the model; its images go to `out`, or to a folder under outputs/.

    Raises:
        ValueError: naming the setting that is wrong.
        RunError: the prompts can't be downloaded.
    """
    prompts = open_prompts(settings.prompts, quiet=quiet)
    model = settings.model or SHAPES_SD
    pipe = load_pipeline(
        StableDiffusionPipeline, model, dtype=resolve_dtype(settings.dtype, device), scheduler=settings.scheduler,
        quiet=quiet, variant=settings.variant,
        safety_checker=None, requires_safety_checker=False,
    )  # fmt: skip
    if pipe.unet.config.in_channels != pipe.vae.config.latent_channels:
        raise ValueError(f"{model} is an inpainting model; give --model one that starts from noise alone")
    check_steps(pipe, settings.steps)
    pipe.scheduler.set_timesteps(settings.steps)
    pipe.start_cache(settings.cache, settings.steps, len(pipe.scheduler.timesteps))
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    guidance = GUIDANCE[settings.model is None] if settings.guidance_scale is None else settings.guidance_scale
    call: dict[str, Any] = {
        "num_inference_steps": settings.steps,
        "guidance_scale": guidance,
        "negative_prompt": settings.negative_prompt,
        "height": settings.height or side,
        "width": settings.width or side,
    }
    recorded = {
        "weights": {part: digest(getattr(pipe, part)) for part in ("unet", "vae", "text_encoder")},
        "prompts": {"name": prompts.name, "count": prompts.count, "sha256": prompts.digest},
        "scheduler": settings.scheduler,
        "rounding": settings.rounding,
        "seed": settings.seed,
        **({"noise_period": settings.noise_period} if settings.noise_period else {}),
        "dtype": settings.dtype,
        **call,
        **settings.cache.to_json(),
    }
    name = f"{Path(model).name}-{Path(prompts.name).stem}-{settings.scheduler}-{settings.steps}-"
    name += f"{settings.cache_label or settings.cache.name()}-g{guidance:g}-{call['width']}x{call['height']}-"
    period = f"-period{settings.noise_period}" if settings.noise_period else ""
    name += f"{settings.rounding}-seed{settings.seed}{period}-{settings.dtype}"
    device = device_of_process(device)
    pipe.to(device)
    pipe.set_progress_bar_config(disable=quiet or not PartialState().is_main_process, leave=False)

    def make(batch: Batch, cache: CacheConfig) -> Tensor:
        texts = [prompts.text(k) for k in batch.indices]
        return make_images(pipe, texts, batch.generators, **call, **cache.arguments)

    image_set = ImageSet(out or Path("outputs") / name, recorded, versions(device))
    return Run(
        image_set, pipe.unet, settings.cache, make, settings.seed, rounding=settings.rounding,
        noise_period=settings.noise_period,
    )  # fmt: skip
