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
from pathlib import Path
from typing import Any

import torch

from assets.tiny import xl_parts, xl_refiner_parts
from eval.arguments import BEYOND, Formatter, add_cache_arguments, add_run_arguments, exit_status, schedule_of
from eval.pictures import (
    add_picture_arguments,
    check_arguments,
    check_run,
    check_steps,
    compare_and_save,
    open_pipeline,
    read_images,
    result_folder,
)
from pipelines import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLInpaintPipeline, StableDiffusionXLPipeline
from pipelines.run_cache import check_cache_arguments

BASE = "stabilityai/stable-diffusion-xl-base-1.0"
REFINER = "stabilityai/stable-diffusion-xl-refiner-1.0"
BASE_SHARE = 0.8  # of the noise is removed by the base model where there is a refiner, as in the original's script
PROMPTS = {False: ["a photo of an astronaut on a moon"], True: ["a large red ring"]}  # by whether the model is tiny


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=Formatter)
    p.add_argument("--model", metavar="ID_OR_PATH", default=BASE, help="diffusers directory or hub id")
    p.add_argument(
        "--refine", action="store_true", help=f"remove the last {1 - BASE_SHARE:.0%} of the noise by a refiner"
    )
    p.add_argument("--refine-model", metavar="ID_OR_PATH", default=REFINER, help="of --refine")
    p.add_argument("--tiny", action="store_true", help="small models of this layout with random weights instead")
    add_picture_arguments(p, steps=50, guidance="5")
    add_cache_arguments(p, interval=5, branch=1, beyond=list(BEYOND))
    add_run_arguments(p)
    return p


def open_refiner(args: argparse.Namespace, dtype: torch.dtype) -> Any:
    """The refiner. Raises ValueError if the model is something else."""
    tiny_parts = xl_refiner_parts if args.tiny else None
    refiner = open_pipeline(StableDiffusionXLImg2ImgPipeline, args, args.refine_model, dtype, tiny_parts=tiny_parts)
    if refiner.text_encoder is not None or not refiner.config.requires_aesthetics_score:
        raise ValueError(
            f"{args.refine_model} is not a refiner, which has one text encoder and takes a score; try {REFINER}"
        )
    return refiner


def check_two_stages(base: Any, refiner: Any, steps: int, cache: dict[str, Any], refiner_cache: dict[str, Any]) -> None:
    """Raises ValueError for what would otherwise fail after minutes of work."""
    check_steps(base, steps)
    for pipe in (base, refiner):
        pipe.scheduler.set_timesteps(steps)
    cutoff = (1 - BASE_SHARE) * base.scheduler.config.num_train_timesteps
    of_base = int((base.scheduler.timesteps >= cutoff).sum())
    if not 0 < of_base < len(base.scheduler.timesteps):
        raise ValueError(f"--steps is {steps}, which leaves one of the two models none; give at least 5")
    timesteps, part = base.until(base.scheduler.timesteps, steps, BASE_SHARE)
    base.plan_cache(part, len(timesteps), **schedule_of(cache))
    check_cache_arguments(base.unet, len(timesteps), **cache)
    timesteps, part = refiner.get_timesteps(steps, 1.0, "cpu", denoising_start=BASE_SHARE)
    refiner.plan_cache(part, len(timesteps), **schedule_of(refiner_cache))
    check_cache_arguments(refiner.unet, len(timesteps), **refiner_cache)


def work(args: argparse.Namespace) -> None:
    # 1. Check what can be checked before a model is loaded.
    cache, device, dtype = check_arguments(args)
    if args.refine and args.image:
        raise ValueError("--refine goes on from the base model's picture; leave --image and --mask out")
    prompts = args.prompt or PROMPTS[args.tiny]
    num_images = len(prompts) * args.num_images
    images = read_images(args, num_images)
    out = result_folder(args, "tiny-sdxl" if args.tiny else Path(args.model).name + ("-refined" if args.refine else ""))

    # 2. Load, and check what the models decide.
    cls = StableDiffusionXLInpaintPipeline if args.mask else StableDiffusionXLImg2ImgPipeline
    tiny_parts = xl_parts if args.tiny else None
    base = open_pipeline(
        cls if args.image else StableDiffusionXLPipeline, args, args.model, dtype, tiny_parts=tiny_parts
    )
    stages = {"base": base}
    refiner: Any = None
    # The refiner's few steps are no place for a schedule that is made for the whole run.
    refiner_cache = {n: v for n, v in cache.items() if n in ("cache_interval", "cache_branch_id", *BEYOND)}
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
    def call(run: str, generators: list[torch.Generator]) -> Any:
        on = run == "deepcache"
        settings = {**arguments, "generator": generators}
        if refiner is None:
            return base(**settings, **images, **(cache if on else {}), output_type="pt")
        part = {**settings, "denoising_end": BASE_SHARE, "output_type": "latent"}
        latents = base(**part, **images, **(cache if on else {})).images
        # The refiner takes each picture with its own prompt.
        texts = {
            name: arguments[name] and [text for text in arguments[name] for _ in range(args.num_images)]
            for name in ("prompt", "negative_prompt")
        }
        rest = {**settings, **texts, "num_images_per_prompt": 1, "denoising_start": BASE_SHARE, "output_type": "pt"}
        return refiner(**rest, image=latents, **(refiner_cache if on else {}))

    compare_and_save(args, stages, call, settled={**arguments, **images}, out=out, num_images=num_images, device=device)


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return exit_status(lambda: work(args))


if __name__ == "__main__":
    sys.exit(main())
