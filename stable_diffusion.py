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
from typing import Any

from PIL import Image

from eval.arguments import (
    Formatter,
    add_cache_arguments,
    add_run_arguments,
    at_least,
    cache_settings,
    device_and_dtype,
    exit_status,
    read_image,
)
from eval.compare import compare, prepare, report
from eval.images import check_out, save_comparison
from pipelines import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline, StableDiffusionPipeline
from pipelines.loading import SCHEDULERS, SHAPES, load_pipeline

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
    p.add_argument("--prompt", action="append", help="may be given several times (default: examples for the model)")
    p.add_argument("--negative-prompt", help="for all prompts")
    p.add_argument("--image", metavar="FILE", help="start from this image instead of noise")
    p.add_argument("--mask", metavar="FILE", help="redraw --image where this image is white")
    p.add_argument(
        "--strength", type=float, help="how much of --image is redrawn, 0 to 1 (default: 0.8; 1 with --mask)"
    )
    p.add_argument("--scheduler", help=f"{', '.join(SCHEDULERS)} (default: the model's own)")
    p.add_argument("--steps", type=int, default=50, help="denoising steps")
    p.add_argument("--guidance-scale", type=float, help="(default: 7.5; 2.5 for the shipped model)")
    p.add_argument("--height", type=int, help="pixels (default: the model's own, or the image's)")
    p.add_argument("--width", type=int, help="pixels (default: the model's own, or the image's)")
    p.add_argument("--num-images", type=int, default=1, help="images of each prompt")
    add_cache_arguments(p)
    add_run_arguments(p)
    return p


def read_images(args: argparse.Namespace, num_images: int) -> dict[str, Any]:
    """The pipeline's arguments for `--image` and `--mask`, of the size that is to be made, once for each result."""
    if args.image is None:
        if args.mask is not None or args.strength is not None:
            raise ValueError("--mask and --strength need --image")
        return {"height": args.height, "width": args.width}
    image = read_image(args.image)
    mask = read_image(args.mask, "L") if args.mask else None
    if mask is not None and mask.size != image.size:
        raise ValueError(
            f"--mask is {mask.width} × {mask.height}, --image {image.width} × {image.height}; make them equal"
        )
    size = (args.width or image.width, args.height or image.height)
    if any(side % 8 for side in size):
        raise ValueError(f"the image is {size[0]} × {size[1]}; give --width and --height divisible by 8 to resize it")
    image = image.resize(size, Image.Resampling.LANCZOS)
    if mask is None:
        return {"image": [image] * num_images, "strength": 0.8 if args.strength is None else args.strength}
    return {
        "image": [image] * num_images,
        "mask_image": [mask.resize(size, Image.Resampling.NEAREST)] * num_images,
        "strength": 1.0 if args.strength is None else args.strength,
        "width": size[0],
        "height": size[1],
    }


def pipeline_class(args: argparse.Namespace) -> type:
    if args.mask:
        return StableDiffusionInpaintPipeline
    return StableDiffusionImg2ImgPipeline if args.image else StableDiffusionPipeline


def schedule_name(args: argparse.Namespace) -> str:
    """The schedule in few letters, for the name of a folder."""
    if args.cache_steps is not None:
        return "steps" + ".".join(map(str, args.cache_steps))
    return f"N{args.cache_interval}" + (f"-center{args.center}-pow{args.pow}" if args.non_uniform else "")


def check_run(pipe: Any, args: argparse.Namespace, strength: float | None, cache: dict[str, Any]) -> None:
    """Raises ValueError for what would otherwise fail after minutes of work."""
    channels, trained = pipe.unet.config.in_channels, pipe.scheduler.config.num_train_timesteps
    if channels == 9 and not args.mask:
        raise ValueError("this is an inpainting model; give --image and --mask")
    if args.steps >= trained:
        raise ValueError(f"--steps is {args.steps}; it must be below the {trained} steps that the model was trained on")
    pipe.scheduler.set_timesteps(args.steps)
    timesteps, steps = pipe.scheduler.timesteps, args.steps
    if strength is not None:
        timesteps, steps = pipe.get_timesteps(args.steps, strength, "cpu")
        if not 0 <= strength <= 1 or steps < 1:
            raise ValueError(
                f"--strength is {strength}; it must be up to 1, and leave one of {args.steps} steps to run"
            )
    pipe.plan_cache(steps, len(timesteps), **cache)


def work(args: argparse.Namespace) -> None:
    # 1. Check what can be checked before a model is loaded.
    at_least(args, steps=1, num_images=1, repeats=1, warm_up=0, height=8, width=8, seed=0)
    for name in ("height", "width"):
        if (getattr(args, name) or 8) % 8:
            raise ValueError(f"--{name} is {getattr(args, name)}; it must be divisible by 8")
    cache = cache_settings(args)
    device, dtype = device_and_dtype(args)
    shipped = args.model is None
    prompts = args.prompt or PROMPTS[shipped]
    num_images = len(prompts) * args.num_images
    images = read_images(args, num_images)
    model = SHAPES if shipped else args.model
    schedule = schedule_name(args)
    slug = (
        f"{Path(model).name}-{args.scheduler or 'own'}-{args.steps}-{schedule}-m{args.cache_branch_id}-seed{args.seed}"
    )
    out = (args.out or Path("outputs") / slug).resolve()
    check_out(out)

    # 2. Load, and check what the model decides.
    pipe = load_pipeline(pipeline_class(args), model, dtype=dtype, scheduler=args.scheduler, quiet=args.quiet)
    check_run(pipe, args, images.get("strength"), cache)
    prepare(pipe, device, channels_last=args.channels_last, compiled=args.compile, cpu_offload=args.cpu_offload)
    arguments = {
        "prompt": prompts,
        "negative_prompt": None if args.negative_prompt is None else [args.negative_prompt] * len(prompts),
        "num_inference_steps": args.steps,
        "guidance_scale": GUIDANCE[shipped] if args.guidance_scale is None else args.guidance_scale,
        "num_images_per_prompt": args.num_images,
        **images,
    }
    if shipped:
        print("No --model given: using the small model of coloured shapes that ships with this repository.")
    print(
        f"{num_images} images, {args.steps} steps of {type(pipe.scheduler).__name__}, "
        f"guidance {arguments['guidance_scale']}, {device.type}, {str(dtype).removeprefix('torch.')}; "
        f"DeepCache {schedule}, m = {args.cache_branch_id}"
    )

    # 3. Run both ways, in turn.
    runs, result = compare(
        pipe,
        arguments,
        cache,
        num_images=num_images,
        seed=args.seed,
        repeats=args.repeats,
        warm_up=args.warm_up,
        device=device,
        quiet=args.quiet,
    )

    # 4. Show and save.
    given = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    settled = {k: v for k, v in arguments.items() if k not in ("image", "mask_image")}
    settled |= {"scheduler": type(pipe.scheduler).__name__, "device": str(device), "dtype": str(dtype)}
    save_comparison(out, runs, {"arguments": given, "settled": settled, **result})
    print(report(result))
    print(f"Written          {out / 'output.png'} (above baseline, below DeepCache), every image, result.json")


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return exit_status(lambda: work(args))


if __name__ == "__main__":
    sys.exit(main())
