"""What the scripts that make pictures do alike: their arguments, what they check and load, and the run itself."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from pipelines.loading import SCHEDULERS, load_pipeline, new_scheduler
from pipelines.run_cache import check_cache_arguments

from .arguments import BEYOND, at_least, cache_settings, device_and_dtype, read_image, schedule_of
from .compare import compare, prepare, report
from .images import check_out, save_comparison


def add_picture_arguments(p: argparse.ArgumentParser, *, steps: int, guidance: str) -> None:
    """Prompt, image and mask, sampler and size."""
    p.add_argument("--prompt", action="append", help="may be given several times (default: an example)")
    p.add_argument("--negative-prompt", help="for all prompts")
    p.add_argument("--image", metavar="FILE", help="start from this image instead of noise")
    p.add_argument("--mask", metavar="FILE", help="redraw --image where this image is white")
    p.add_argument(
        "--strength", type=float, help="how much of --image is redrawn, 0 to 1 (default: 0.8; 1 with --mask)"
    )
    p.add_argument("--scheduler", help=f"{', '.join(SCHEDULERS)} (default: the model's own)")
    p.add_argument("--steps", type=int, default=steps, help="denoising steps")
    p.add_argument("--guidance-scale", type=float, help=f"(default: {guidance})")
    p.add_argument("--height", type=int, help="pixels (default: the model's own, or the image's)")
    p.add_argument("--width", type=int, help="pixels (default: the model's own, or the image's)")
    p.add_argument("--num-images", type=int, default=1, help="images of each prompt")


def check_arguments(args: argparse.Namespace) -> tuple[dict[str, Any], torch.device, torch.dtype]:
    """The cache's arguments of a pipeline, the device and the dtype, all checked as far as they are without a model.

    Raises:
        ValueError: naming the argument that is wrong.
    """
    least = {"steps": 1, "num_images": 1, "repeats": 1, "warm_up": 0, "height": 8, "width": 8, "seed": 0}
    at_least(args, **{name: value for name, value in least.items() if hasattr(args, name)})
    for name in ("height", "width"):
        if (getattr(args, name, None) or 8) % 8:
            raise ValueError(f"--{name} is {getattr(args, name)}; it must be divisible by 8")
    return cache_settings(args), *device_and_dtype(args)


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


def result_folder(args: argparse.Namespace, model: str) -> Path:
    """Where the result goes: `--out`, or a folder named after the settings. Raises ValueError if it can't."""
    scheduler = getattr(args, "scheduler", None) or "own"
    slug = f"{model}-{scheduler}-{args.steps}-{schedule_name(args)}-m{args.cache_branch_id}-seed{args.seed}"
    out = (args.out or Path("outputs") / slug).resolve()
    check_out(out)
    return out


def schedule_name(args: argparse.Namespace) -> str:
    """The schedule in few letters, and what goes beyond the paper."""
    name = f"N{args.cache_interval}" + (f"-center{args.center}-pow{args.pow}" if args.non_uniform else "")
    if args.cache_steps is not None:
        name = "steps" + ".".join(map(str, args.cache_steps))
    if args.calibrated is not None:
        name = f"calibrated-{args.calibrated.stem}"
    for option, off in BEYOND.items():
        if (value := getattr(args, option, off)) != off:
            name += f"-{option.replace('_', '-')}" + ("" if value is True or isinstance(value, list) else f"{value:g}")
    return name


def open_pipeline(
    cls: Any,
    args: argparse.Namespace,
    model: str | Path,
    dtype: torch.dtype,
    *,
    tiny_parts: Callable[[], dict[str, Any]] | None = None,
    **components: Any,
) -> Any:
    """The pipeline that `model` names, or one with random weights made of `tiny_parts`, with `--scheduler` if given."""
    scheduler = getattr(args, "scheduler", None)
    if tiny_parts is None:
        return load_pipeline(cls, model, dtype=dtype, scheduler=scheduler, quiet=args.quiet, **components)
    pipe = cls(**{**tiny_parts(), **components})
    if scheduler is not None:
        pipe.scheduler = new_scheduler(scheduler, pipe.scheduler.config)
    return pipe.to(dtype)


def check_steps(pipe: Any, steps: int) -> None:
    """Raises ValueError if the model's scheduler has fewer steps than that."""
    trained = pipe.scheduler.config.num_train_timesteps
    if steps >= trained:
        raise ValueError(f"--steps is {steps}; it must be below the {trained} steps that the model was trained on")


def check_run(pipe: Any, args: argparse.Namespace, strength: float | None, cache: dict[str, Any]) -> None:
    """Raises ValueError for what would otherwise fail after minutes of work."""
    if pipe.unet.config.in_channels == 9 and not args.mask:
        raise ValueError("this is an inpainting model; give --image and --mask")
    check_steps(pipe, args.steps)
    pipe.scheduler.set_timesteps(args.steps)
    timesteps, steps = pipe.scheduler.timesteps, args.steps
    if strength is not None:
        timesteps, steps = pipe.get_timesteps(args.steps, strength, "cpu")
        if not 0 <= strength <= 1 or steps < 1:
            raise ValueError(
                f"--strength is {strength}; it must be up to 1, and leave one of {args.steps} steps to run"
            )
    pipe.plan_cache(steps, len(timesteps), **schedule_of(cache))
    check_cache_arguments(pipe.unet, len(timesteps), **cache)


def compare_and_save(
    args: argparse.Namespace,
    stages: dict[str, Any],
    call: Callable[[str, list[torch.Generator]], Any],
    *,
    settled: dict[str, Any],
    out: Path,
    num_images: int,
    device: torch.device,
    fps: int | None = None,
    around: Callable[[str], AbstractContextManager] = lambda run: nullcontext(),
) -> None:
    """Moves the pipelines to the device, runs `call` both ways in turn, prints what was measured, writes all to `out`.

    `settled` is what was decided besides the arguments, for the record. With `fps`, the images are a video's frames.
    """
    for pipe in stages.values():
        prepare(pipe, device, channels_last=args.channels_last, compiled=args.compile, cpu_offload=args.cpu_offload)
    first = next(iter(stages.values()))
    dtype = str(first.unet.dtype).removeprefix("torch.")
    print(
        f"{num_images} {'videos' if fps else 'images'}, {args.steps} steps of {type(first.scheduler).__name__}, "
        f"{device.type}, {dtype}; DeepCache {schedule_name(args)}, m = {args.cache_branch_id}"
    )
    images, result = compare(
        stages,
        call,
        cache_branch_id=args.cache_branch_id,
        num_images=num_images,
        seed=args.seed,
        repeats=args.repeats,
        warm_up=args.warm_up,
        device=device,
        quiet=args.quiet,
        around=around,
    )
    given = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    settled = {k: v for k, v in settled.items() if k not in ("image", "mask_image")}
    settled |= {"scheduler": type(first.scheduler).__name__, "device": str(device), "dtype": str(first.unet.dtype)}
    save_comparison(out, images, {"arguments": given, "settled": settled, **result}, fps=fps)
    print(report(result))
    shown = (
        "output.mp4, output.gif (left baseline, right DeepCache)"
        if fps
        else "output.png (above baseline, below DeepCache)"
    )
    print(f"Written          {out}: {shown}, every image, result.json")
