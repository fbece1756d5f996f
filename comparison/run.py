"""A script's run: checks that need the model, baseline and DeepCache in turn, the result on disk."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from common.shipped import SHAPES_SD
from common.words import counted
from pipelines.loading import build_pipeline, check_steps, load_pipeline, place_pipeline
from unets.cache.config import CacheConfig

from .arguments import ResultFolder, RunSettings
from .measure import compare
from .progress import RunProgress, duration
from .report import report
from .saving import save_comparison, save_first

RANDOM = "random weights"


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
    if tiny_parts is not None:
        return build_pipeline(cls, {**tiny_parts(), **components}, dtype=dtype, scheduler=scheduler)
    settings = {"scheduler": scheduler, "quiet": args.quiet, "variant": args.variant}
    return load_pipeline(cls, model, dtype=dtype, **settings, **components)


def check_run(pipe: Any, args: argparse.Namespace, strength: float | None, cache: CacheConfig) -> None:
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
                f"--strength is {strength}; it must be at most 1, and leave at least 1 of {counted(args.steps, 'step')}"
            )
    pipe.start_cache(cache, steps, len(timesteps))


def _model_name(pipe: Any, args: argparse.Namespace) -> str:
    """The hub id or directory that was loaded, or that the weights are random."""
    given = None if getattr(args, "tiny", False) else getattr(args, "model", None)
    loaded = pipe.config.get("_name_or_path") or given or RANDOM
    return "shapes-sd, the shipped model" if str(loaded) == str(SHAPES_SD) else str(loaded)


def compare_and_save(
    args: argparse.Namespace,
    settings: RunSettings,
    stages: dict[str, Any],
    call: Callable[[str, list[torch.Generator]], Any],
    *,
    resolved: dict[str, Any],
    out: ResultFolder,
    num_images: int,
    fps: int | None = None,
) -> None:
    """Moves the pipelines to the device, runs `call` both ways in turn, prints the measurements, writes all to `out`.

    `resolved` has the values of defaulted arguments, for the record. With `fps`, the images are a video's frames.
    """
    device = settings.device
    for pipe in stages.values():
        place_pipeline(
            pipe, device, channels_last=args.channels_last, compiled=args.compile, cpu_offload=args.cpu_offload
        )
    first = next(iter(stages.values()))
    resolved = {**resolved, "model": _model_name(first, args)}
    dtype = str(first.unet.dtype).removeprefix("torch.")
    what = counted(num_images, "video" if fps else "image")
    print(
        f"{what}, {counted(args.steps, 'step')} of {type(first.scheduler).__name__}, {device.type}, {dtype}; "
        f"DeepCache {settings.cache_name}"
    )
    if resolved["model"] == RANDOM:
        print("Random weights: the output is noise. This shows that everything runs, but nothing about quality.")
    shown = (
        "output.mp4, output.gif (left baseline, right DeepCache)"
        if fps
        else "output.png (above baseline, below DeepCache)"
    )

    def show_first(images: dict[str, list[Image.Image]], progress: RunProgress) -> None:
        save_first(out.path, images, out.made_from, fps=fps)
        more, left = progress.total - progress.done, progress.seconds_left()
        print(f"Pictures         {out.path}: {shown}", flush=True)
        if more and left is not None:
            print(f"Timing           {more} more run{'s' * (more > 1)}, about {duration(left)}", flush=True)

    images, result = compare(
        stages,
        call,
        num_images=num_images,
        seed=args.seed,
        repeats=args.repeats,
        warm_up=args.warm_up,
        device=device,
        quiet=args.quiet,
        show_first=show_first,
    )
    given = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    resolved = {k: v for k, v in resolved.items() if k not in ("image", "mask_image")}
    resolved |= {"scheduler": type(first.scheduler).__name__, "device": str(device), "dtype": str(first.unet.dtype)}
    record = {
        "made_from": out.made_from,
        "arguments": given,
        "resolved": resolved,
        "cache": settings.cache.to_json(),
        **result,
    }
    save_comparison(out.path, images, record, fps=fps)
    print(report(result))
    print(f"Written          {out.path}: {shown}, every image, result.json")
