"""One picture or video on several processes at once (AsyncDiff), beside the same in one: pictures, seconds, bytes sent.

torchrun --nproc_per_node 2 -m asyncdiff.sample                                the shipped model, on two processes
torchrun --nproc_per_node 3 -m asyncdiff.sample --stride 2 --time-shift        two parts, two steps in each round
torchrun --nproc_per_node 4 -m asyncdiff.sample --model_type sdxl --prompt "a photo of an astronaut"
torchrun --nproc_per_node 2 -m asyncdiff.sample --model_type svd --image photo.png
python -m asyncdiff.sample --emulate 4                                         the same pictures in one process
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import common  # noqa: F401  # isort: skip  # first: help needs no torch
import torch

from common import numbers
from common.command_line import Parser, add_quiet_argument, run_cli
from common.device import add_device_arguments, resolve_device, resolve_dtype
from common.digests import settings_key
from common.images import read_image
from common.shipped import EXAMPLE_IMAGE, GUIDANCE, PROMPTS, SHAPES_SD
from common.words import counted
from comparison.arguments import fit_image
from comparison.run import open_pipeline
from comparison.saving import check_out, made_from, save_comparison
from pipelines import StableDiffusionPipeline, StableDiffusionXLPipeline, StableVideoDiffusionPipeline
from pipelines.loading import SCHEDULERS, check_steps
from pipelines.tiny import sd21_parts, svd_parts, xl_parts
from unets.cache.config import CacheConfig

from .costs import layer_costs
from .measure import compare, describe
from .plan import Plan, cut, cut_at
from .processes import OneProcess, joined, launched_size
from .report import report

# Class, the model if none is given, what its small one with random weights is made of, steps.
TYPES: dict[str, tuple[Any, str, Any, int]] = {
    "sd": (StableDiffusionPipeline, str(SHAPES_SD), sd21_parts, 50),
    "sdxl": (StableDiffusionXLPipeline, "stabilityai/stable-diffusion-xl-base-1.0", xl_parts, 50),
    "svd": (StableVideoDiffusionPipeline, "stabilityai/stable-video-diffusion-img2vid-xt", svd_parts, 25),
}
VIDEO_SIZES = {False: (1024, 576), True: (64, 64)}  # width and height, by --tiny


def parser() -> Parser:
    p = Parser(prog="python -m asyncdiff.sample", description=__doc__)
    p.add_argument("--model_type", choices=list(TYPES), default="sd", help="Stable Diffusion, SDXL or its video model")
    p.add_argument("--model", metavar="ID_OR_PATH", help="diffusers directory or hub id (default: of the type)")
    p.add_argument("--tiny", action="store_true", help="use a small model of this type with random weights")
    p.add_argument("--prompt", action="append", help="can be repeated (default: an example)")
    p.add_argument("--image", metavar="FILE", default=str(EXAMPLE_IMAGE), help="the video's first frame")
    p.add_argument("--num-frames", type=numbers.whole(1, 10_000), help="of a video (default: the model's own)")
    p.add_argument("--fps", type=numbers.whole(1, 1000), default=7, help="frames per second of a video")
    p.add_argument("--scheduler", help=f"{', '.join(SCHEDULERS)} (default: the model's own)")
    p.add_argument("--steps", type=numbers.steps, help="denoising steps (default: 50, of a video 25)")
    p.add_argument("--guidance-scale", type=numbers.guidance, help="(default: 7.5; SDXL 5, shipped model 2.5, video 3)")
    p.add_argument("--height", type=numbers.pixels, help="pixels (default: the model's own)")
    p.add_argument("--width", type=numbers.pixels, help="pixels (default: the model's own)")
    group = p.add_argument_group("AsyncDiff")
    group.add_argument(
        "--warm-up-steps", type=numbers.whole(1, numbers.MOST_STEPS), default=1, metavar="W",
        help="calls of the U-Net before the parts run at once",
    )  # fmt: skip
    group.add_argument(
        "--stride", type=numbers.whole(1, 16), default=1, metavar="S",
        help="steps that one round of the parts denoises; takes S − 1 processes more",
    )  # fmt: skip
    group.add_argument("--time-shift", action="store_true", help="tell the U-Net the timestep of the step before")
    group.add_argument(
        "--cut", type=numbers.wholes(1, 1000), metavar="5,9,…",
        help="the layers at which the second part and so on start (default: parts of equal cost)",
    )  # fmt: skip
    group.add_argument(
        "--emulate", type=numbers.whole(1, 64), metavar="N",
        help="do the work of N processes in this one: their pictures, and not their speed",
    )  # fmt: skip
    group.add_argument(
        "--timeout", type=numbers.whole(1, 86400), default=1800, metavar="SECONDS",
        help="after which a process that does not answer is given up",
    )  # fmt: skip
    group = p.add_argument_group("run")
    group.add_argument("--repeats", type=numbers.repeats, default=3, help="timed pairs of baseline and AsyncDiff")
    group.add_argument("--warm-up", type=numbers.warm_up, default=1, metavar="PAIRS", help="untimed pairs before those")
    group.add_argument("--variant", help="of the weights, such as fp16 (default: none, or the only one available)")
    add_device_arguments(group)
    group.add_argument("--seed", type=numbers.seed, default=42, help="image k starts from the noise of seed + k")
    group.add_argument("--out", type=Path, metavar="DIR", help="(default: outputs/<settings>)")
    add_quiet_argument(group)
    return p


def run(args: argparse.Namespace) -> None:
    # 1. Check what can be checked before a model is loaded.
    device = resolve_device(args.device)
    dtype = resolve_dtype(args.dtype, device)
    size = args.emulate or launched_size()
    if size < args.stride or (args.stride > 1 and size == args.stride):
        raise ValueError(
            f"--stride {args.stride} needs at least {args.stride + 1} processes; there {'is' if size == 1 else 'are'} "
            f"{size}"
        )
    num_parts = size - args.stride + 1
    if args.cut is not None and len(args.cut) != num_parts - 1:
        raise ValueError(
            f"--cut has {counted(len(args.cut), 'layer')}; give {num_parts - 1} for {counted(num_parts, 'part')}"
        )
    first = args.emulate is not None or os.environ["RANK"] == "0"
    if device.type == "cuda" and args.emulate is None:  # one GPU for each process of a machine
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        if device.index >= torch.cuda.device_count():
            raise ValueError(f"there are more processes than GPUs ({torch.cuda.device_count()}) on this machine")
        torch.cuda.set_device(device)
    cls, model, tiny_parts, steps = TYPES[args.model_type]
    args.steps = args.steps or steps
    model = args.model or model
    made = {**made_from(args, CacheConfig()), "processes": size}
    name = f"tiny-{args.model_type}" if args.tiny else Path(model).name
    out = args.out or Path("outputs") / f"asyncdiff-{name}-{size}-{args.steps}-{settings_key(made)}"
    if first:
        check_out(out, made)
    args.quiet = args.quiet or not first

    # 2. Load, and check what the model decides.
    pipe = open_pipeline(cls, args, model, dtype, tiny_parts=tiny_parts if args.tiny else None)
    pipe.set_progress_bar_config(disable=args.quiet, leave=False)
    check_steps(pipe, args.steps)
    pipe.scheduler.set_timesteps(args.steps)
    num_calls = len(pipe.scheduler.timesteps)
    if args.warm_up_steps > num_calls:
        raise ValueError(f"--warm-up-steps is {args.warm_up_steps}; the U-Net is called {num_calls} times")
    width, height, inputs, num_images = pipeline_inputs(args, pipe)
    costs = layer_costs(
        pipe.unet, height // pipe.vae_scale_factor, width // pipe.vae_scale_factor, frames=inputs.get("num_frames", 1)
    )
    parts = cut(costs, num_parts) if args.cut is None else cut_at(args.cut, len(costs))
    plan = Plan(parts, args.warm_up_steps, args.stride, args.time_shift)
    pipe.to(device)

    def arguments() -> dict[str, Any]:
        return {**inputs, "generator": [torch.Generator().manual_seed(args.seed + k) for k in range(num_images)]}

    # 3. Run both ways in turn, show and save.
    with nullcontext(OneProcess()) if args.emulate else joined(device, args.timeout) as processes:
        if first:
            print(
                f"{counted(num_images, 'video' if args.model_type == 'svd' else 'image')}, "
                f"{counted(args.steps, 'step')} of {type(pipe.scheduler).__name__}, {device.type}, "
                f"{str(dtype).removeprefix('torch.')}; {counted(num_parts, 'part')} on "
                f"{size} process{'es' if size > 1 else ''}{' (emulated)' if args.emulate else ''}, "
                f"warm-up {args.warm_up_steps}, stride {args.stride}",
                flush=True,
            )
        images, result = compare(
            pipe, plan, processes, arguments, repeats=args.repeats, warm_up=args.warm_up, device=device
        )
    if first:
        described = describe(plan, costs, num_calls)
        record = {"made_from": made, "emulated": bool(args.emulate), "plan": described, **result}
        save_comparison(out, images, record, fps=args.fps if args.model_type == "svd" else None)
        print(report(described, result, emulated=bool(args.emulate)))
        print(f"Written          {out}: output.png (above baseline, below AsyncDiff), every image, result.json")


def pipeline_inputs(args: argparse.Namespace, pipe: Any) -> tuple[int, int, dict[str, Any], int]:
    """Width, height, the pipeline's arguments but for generators, and how many of these it needs."""
    inputs: dict[str, Any] = {"num_inference_steps": args.steps}
    if args.model_type == "svd":
        width, height = (
            given or side for given, side in zip((args.width, args.height), VIDEO_SIZES[args.tiny], strict=True)
        )
        inputs |= {
            "image": fit_image(read_image(args.image), (width, height)),
            "num_frames": args.num_frames or pipe.unet.config.num_frames,
            "fps": args.fps,
            "max_guidance_scale": 3.0 if args.guidance_scale is None else args.guidance_scale,
        }
        return width, height, {**inputs, "width": width, "height": height}, 1
    own = pipe.unet.config.sample_size * pipe.vae_scale_factor
    width, height = args.width or own, args.height or own
    shipped = args.model is None and (args.tiny or args.model_type == "sd")
    guidance = 5.0 if args.model_type == "sdxl" else GUIDANCE[shipped]
    inputs["prompt"] = args.prompt or PROMPTS[shipped]
    inputs["guidance_scale"] = guidance if args.guidance_scale is None else args.guidance_scale
    return width, height, {**inputs, "width": width, "height": height}, len(inputs["prompt"])


def main(argv: list[str] | None = None) -> int:
    return run_cli(lambda: run(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
