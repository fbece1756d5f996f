"""Stable Video Diffusion with and without DeepCache: one image in, two videos side by side out, seconds, speed-up.

python stable_video_diffusion.py --image photo.png                                        SVD-XT, 25 frames
python stable_video_diffusion.py --model stabilityai/stable-video-diffusion-img2vid       SVD, 14 frames
python stable_video_diffusion.py --tiny                                                   random weights, to see it run
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import common  # noqa: F401  # isort: skip  # first: help needs no torch
import torch

from common import numbers
from common.command_line import Parser, run_cli
from common.images import read_image
from common.shipped import EXAMPLE_IMAGE
from comparison.arguments import add_run_arguments, check_arguments, fit_image, result_folder
from comparison.run import compare_and_save, open_pipeline
from pipelines import StableVideoDiffusionPipeline
from pipelines.cache_options import EXTENSIONS, add_cache_arguments
from pipelines.loading import check_steps
from pipelines.tiny import svd_parts

SVD_XT = "stabilityai/stable-video-diffusion-img2vid-xt"
SIZES = {False: (1024, 576), True: (64, 64)}  # width and height, by --tiny


def parser() -> Parser:
    p = Parser(description=__doc__)
    p.add_argument("--model", metavar="ID_OR_PATH", default=SVD_XT, help="diffusers directory or hub id")
    p.add_argument("--tiny", action="store_true", help="use a small model of this layout with random weights")
    p.add_argument(
        "--image",
        metavar="FILE",
        default=str(EXAMPLE_IMAGE),
        help="the first frame; cropped to the video's shape, never stretched; transparency becomes white",
    )
    p.add_argument("--num-frames", type=numbers.whole(1, 10_000), help="(default: as many as the model was trained on)")
    p.add_argument("--steps", type=numbers.steps, default=25, help="denoising steps")
    p.add_argument("--min-guidance-scale", type=numbers.guidance, default=1.0, help="guidance scale of the first frame")
    p.add_argument("--max-guidance-scale", type=numbers.guidance, default=3.0, help="guidance scale of the last frame")
    p.add_argument("--height", type=numbers.pixels, help="pixels (default: 576)")
    p.add_argument("--width", type=numbers.pixels, help="pixels (default: 1024)")
    p.add_argument("--fps", type=numbers.whole(1, 1000), default=7, help="frames per second")
    p.add_argument("--motion-bucket-id", type=numbers.whole(0, 10_000), default=127, help="higher means more motion")
    p.add_argument(
        "--noise-aug-strength",
        type=numbers.real(0, 10),
        default=0.02,
        help="noise added to the image; higher means less similar",
    )
    p.add_argument(
        "--decode-chunk-size",
        type=numbers.whole(1, 10_000),
        help="frames decoded at once; fewer need less memory (default: all)",
    )
    extensions = [name for name in EXTENSIONS if name != "skip_interval"]
    add_cache_arguments(p, interval=5, branch=0, extensions=extensions)
    add_run_arguments(p)
    return p


def run(args: argparse.Namespace) -> None:
    # 1. Check what can be checked before a model is loaded.
    settings = check_arguments(args)
    cache, dtype = settings.cache, settings.dtype
    width, height = (given or side for given, side in zip((args.width, args.height), SIZES[args.tiny], strict=True))
    image = fit_image(read_image(args.image), (width, height))
    out = result_folder(args, settings, "tiny-svd" if args.tiny else Path(args.model).name)

    # 2. Load, and check what the model decides.
    pipe = open_pipeline(
        StableVideoDiffusionPipeline, args, args.model, dtype, tiny_parts=svd_parts if args.tiny else None
    )
    check_steps(pipe, args.steps)
    pipe.start_cache(cache, args.steps, args.steps)
    arguments = {
        "num_frames": args.num_frames or pipe.unet.config.num_frames,
        "num_inference_steps": args.steps,
        "min_guidance_scale": args.min_guidance_scale,
        "max_guidance_scale": args.max_guidance_scale,
        "height": height,
        "width": width,
        "fps": args.fps,
        "motion_bucket_id": args.motion_bucket_id,
        "noise_aug_strength": args.noise_aug_strength,
        "decode_chunk_size": args.decode_chunk_size,
    }

    # 3. Run both ways in turn, show and save.
    def call(way: str, generators: list[torch.Generator]) -> Any:
        cached = cache.arguments if way == "deepcache" else {}
        (video,) = pipe(image, **arguments, **cached, generator=generators, output_type="pt").frames
        return SimpleNamespace(images=video)  # (F, 3, H, W)

    compare_and_save(args, settings, {"pipeline": pipe}, call, resolved=arguments, out=out, num_images=1, fps=args.fps)


def main(argv: list[str] | None = None) -> int:
    return run_cli(lambda: run(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
