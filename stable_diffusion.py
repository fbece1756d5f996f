"""Stable Diffusion with and without DeepCache, side by side: pictures, seconds, speed-up.

python stable_diffusion.py                                        the model shipped with this repository
python stable_diffusion.py --model stable-diffusion-v1-5/stable-diffusion-v1-5 --prompt "a photo of an astronaut"
python stable_diffusion.py --model … --image photo.png --strength 0.7 --prompt …               image to image
python stable_diffusion.py --model … --image photo.png --mask mask.png --prompt …              inpainting
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from common.command_line import Parser, run_cli
from common.shipped import GUIDANCE, PROMPTS, SHAPES_SD
from comparison.arguments import (
    add_picture_arguments,
    add_run_arguments,
    check_arguments,
    fit_to_model,
    read_images,
    result_folder,
)
from comparison.run import check_run, compare_and_save, open_pipeline
from pipelines import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline, StableDiffusionPipeline
from pipelines.cache_options import EXTENSIONS, add_cache_arguments


def parser() -> Parser:
    p = Parser(description=__doc__)
    p.add_argument("--model", metavar="ID_OR_PATH", help="diffusers directory or hub id (default: the shipped model)")
    add_picture_arguments(p, steps=50, guidance="7.5; 2.5 for the shipped model")
    add_cache_arguments(p, interval=5, branch=1, extensions=EXTENSIONS)
    add_run_arguments(p)
    return p


def run(args: argparse.Namespace) -> None:
    # 1. Check what can be checked before a model is loaded.
    settings = check_arguments(args)
    cache, dtype = settings.cache, settings.dtype
    shipped = args.model is None
    prompts = args.prompt or PROMPTS[shipped]
    num_images = len(prompts) * args.num_images
    images = read_images(args, num_images)
    model = SHAPES_SD if shipped else args.model
    out = result_folder(args, settings, Path(model).name)

    # 2. Load, and check what the model decides.
    cls = StableDiffusionInpaintPipeline if args.mask else StableDiffusionImg2ImgPipeline
    pipe = open_pipeline(cls if args.image else StableDiffusionPipeline, args, model, dtype)
    check_run(pipe, args, images.get("strength"), cache)
    images = fit_to_model(images, args, pipe)
    if shipped:
        print("No --model given: using the small model of coloured shapes that ships with this repository.")
    arguments = {
        "prompt": prompts,
        "negative_prompt": None if args.negative_prompt is None else [args.negative_prompt] * len(prompts),
        "num_inference_steps": args.steps,
        "guidance_scale": GUIDANCE[shipped] if args.guidance_scale is None else args.guidance_scale,
        "num_images_per_prompt": args.num_images,
        **images,
    }

    # 3. Run both ways in turn, show and save.
    compare_and_save(
        args,
        settings,
        {"pipeline": pipe},
        lambda way, generators: pipe(
            **arguments, **(cache.arguments if way == "deepcache" else {}), generator=generators, output_type="pt"
        ),
        resolved=arguments,
        out=out,
        num_images=num_images,
    )


def main(argv: list[str] | None = None) -> int:
    return run_cli(lambda: run(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
