"""SDXL with and without DeepCache, side by side: pictures, seconds, speed-up.

python stable_diffusion_xl.py --prompt "a photo of an astronaut"
python stable_diffusion_xl.py --refine --prompt …                                 base model, then refiner
python stable_diffusion_xl.py --image photo.png --strength 0.7 --prompt …         image to image
python stable_diffusion_xl.py --image photo.png --mask mask.png --prompt …        inpainting
python stable_diffusion_xl.py --tiny --refine                                     random weights, to see it run
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import common  # noqa: F401  # isort: skip  # first: help needs no torch
import torch

from common.command_line import Parser, run_cli
from comparison.arguments import (
    add_picture_arguments,
    add_run_arguments,
    check_arguments,
    fit_to_model,
    read_images,
    result_folder,
)
from comparison.run import check_run, compare_and_save, open_pipeline
from pipelines import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLInpaintPipeline, StableDiffusionXLPipeline
from pipelines.cache_options import EXTENSIONS, add_cache_arguments
from pipelines.loading import check_steps
from pipelines.tiny import xl_parts, xl_refiner_parts
from unets.cache.config import CacheConfig

BASE = "stabilityai/stable-diffusion-xl-base-1.0"
REFINER = "stabilityai/stable-diffusion-xl-refiner-1.0"
BASE_SHARE = 0.8  # of the noise is removed by the base model if there is a refiner, as in the original script
PROMPTS = {False: ["a photo of an astronaut on a moon"], True: ["a large red ring"]}  # by --tiny


def parser() -> Parser:
    p = Parser(description=__doc__)
    p.add_argument("--model", metavar="ID_OR_PATH", default=BASE, help="diffusers directory or hub id")
    p.add_argument(
        "--refine", action="store_true", help=f"remove the last {1 - BASE_SHARE:.0%}% of the noise with a refiner"
    )
    p.add_argument("--refine-model", metavar="ID_OR_PATH", default=REFINER, help="refiner, for --refine")
    p.add_argument("--tiny", action="store_true", help="use small models of this layout with random weights")
    add_picture_arguments(p, steps=50, guidance="5")
    add_cache_arguments(p, interval=5, branch=1, extensions=EXTENSIONS)
    add_run_arguments(p)
    return p


def open_refiner(args: argparse.Namespace, dtype: torch.dtype) -> Any:
    """The refiner. Raises ValueError if the model is something else."""
    tiny_parts = xl_refiner_parts if args.tiny else None
    refiner = open_pipeline(StableDiffusionXLImg2ImgPipeline, args, args.refine_model, dtype, tiny_parts=tiny_parts)
    if refiner.text_encoder is not None or not refiner.config.requires_aesthetics_score:
        raise ValueError(
            f"{args.refine_model} is not a refiner (one text encoder, conditioned on an aesthetic score); try {REFINER}"
        )
    return refiner


def check_two_stages(base: Any, refiner: Any, steps: int, cache: CacheConfig, refiner_cache: CacheConfig) -> None:
    """Raises ValueError for what would otherwise fail after minutes of work."""
    check_steps(base, steps)
    for pipe in (base, refiner):
        pipe.scheduler.set_timesteps(steps)
    cutoff = (1 - BASE_SHARE) * base.scheduler.config.num_train_timesteps
    of_base = int((base.scheduler.timesteps >= cutoff).sum())
    if not 0 < of_base < len(base.scheduler.timesteps):
        raise ValueError(f"--steps is {steps}: too few steps to split between base and refiner; give at least 5")
    timesteps, part = base.until(base.scheduler.timesteps, steps, BASE_SHARE)
    base.start_cache(cache, part, len(timesteps))
    timesteps, part = refiner.get_timesteps(steps, 1.0, "cpu", denoising_start=BASE_SHARE)
    refiner.start_cache(refiner_cache, part, len(timesteps))


def run(args: argparse.Namespace) -> None:
    # 1. Check what can be checked before a model is loaded.
    settings = check_arguments(args)
    cache, dtype = settings.cache, settings.dtype
    if args.refine and args.image:
        raise ValueError("--refine continues from the base model's output; leave out --image and --mask")
    prompts = args.prompt or PROMPTS[args.tiny]
    num_images = len(prompts) * args.num_images
    images = read_images(args, num_images)
    name = "tiny-sdxl" if args.tiny else Path(args.model).name + ("-refined" if args.refine else "")
    out = result_folder(args, settings, name)

    # 2. Load, and check what the models decide.
    cls = StableDiffusionXLInpaintPipeline if args.mask else StableDiffusionXLImg2ImgPipeline
    tiny_parts = xl_parts if args.tiny else None
    base = open_pipeline(
        cls if args.image else StableDiffusionXLPipeline, args, args.model, dtype, tiny_parts=tiny_parts
    )
    images = fit_to_model(images, args, base)
    stages = {"base": base}
    refiner: Any = None
    # A schedule made for the whole run does not fit the refiner's few steps.
    refiner_cache = replace(cache, uniform=True, pow=None, center=None, cache_steps=None)
    if args.refine:
        refiner = open_refiner(args, dtype)
        stages["refiner"] = refiner
        check_two_stages(base, refiner, args.steps, cache, refiner_cache)
    else:
        check_run(base, args, images.get("strength"), cache)
    arguments: dict[str, Any] = {
        "prompt": prompts,
        "negative_prompt": None if args.negative_prompt is None else [args.negative_prompt] * len(prompts),
        "num_inference_steps": args.steps,
        "guidance_scale": 5.0 if args.guidance_scale is None else args.guidance_scale,
        "num_images_per_prompt": args.num_images,
    }

    # 3. Run both ways in turn, show and save.
    def call(way: str, generators: list[torch.Generator]) -> Any:
        on = way == "deepcache"
        settings = {**arguments, "generator": generators}
        if refiner is None:
            return base(**settings, **images, **(cache.arguments if on else {}), output_type="pt")
        part = {**settings, "denoising_end": BASE_SHARE, "output_type": "latent"}
        latents = base(**part, **images, **(cache.arguments if on else {})).images
        # The refiner takes each picture with its own prompt.
        texts = {
            name: arguments[name] and [text for text in arguments[name] for _ in range(args.num_images)]
            for name in ("prompt", "negative_prompt")
        }
        rest = {**settings, **texts, "num_images_per_prompt": 1, "denoising_start": BASE_SHARE, "output_type": "pt"}
        return refiner(**rest, image=latents, **(refiner_cache.arguments if on else {}))

    compare_and_save(args, settings, stages, call, resolved={**arguments, **images}, out=out, num_images=num_images)


def main(argv: list[str] | None = None) -> int:
    return run_cli(lambda: run(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
