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

from eval.arguments import BEYOND, Formatter, add_cache_arguments, add_run_arguments, exit_status
from eval.pictures import (
    add_picture_arguments,
    check_arguments,
    check_run,
    compare_and_save,
    open_pipeline,
    read_images,
    result_folder,
)
from pipelines import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline, StableDiffusionPipeline
from pipelines.loading import SHAPES

PROMPTS = {  # by whether the model is the shipped one
    True: [
        "a large red circle above a small blue square on a green background",
        "a small yellow triangle left of a large purple ring on a striped gray background",
        "a large white cross right of a small black circle on a checkered brown background",
        "a small orange square below a large green triangle on a beige background",
    ],
    False: ["a photo of an astronaut on a moon"],
}
GUIDANCE = {True: 2.5, False: 7.5}  # on so small a model 7.5 is too much: PLMS with few steps falls apart


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=Formatter)
    p.add_argument("--model", metavar="ID_OR_PATH", help="diffusers directory or hub id (default: the shipped model)")
    add_picture_arguments(p, steps=50, guidance="7.5; 2.5 for the shipped model")
    add_cache_arguments(p, interval=5, branch=1, beyond=list(BEYOND))
    add_run_arguments(p)
    return p


def work(args: argparse.Namespace) -> None:
    # 1. Check what can be checked before a model is loaded.
    cache, device, dtype = check_arguments(args)
    shipped = args.model is None
    prompts = args.prompt or PROMPTS[shipped]
    num_images = len(prompts) * args.num_images
    images = read_images(args, num_images)
    model = SHAPES if shipped else args.model
    out = result_folder(args, Path(model).name)

    # 2. Load, and check what the model decides.
    cls = StableDiffusionInpaintPipeline if args.mask else StableDiffusionImg2ImgPipeline
    pipe = open_pipeline(cls if args.image else StableDiffusionPipeline, args, model, dtype)
    check_run(pipe, args, images.get("strength"), cache)
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
        {"pipeline": pipe},
        lambda run, generators: pipe(
            **arguments, **(cache if run == "deepcache" else {}), generator=generators, output_type="pt"
        ),
        settled=arguments,
        out=out,
        num_images=num_images,
        device=device,
    )


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return exit_status(lambda: work(args))


if __name__ == "__main__":
    sys.exit(main())
