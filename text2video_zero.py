"""Text2Video-Zero with and without DeepCache: a prompt in, two videos side by side out, seconds, speed-up.

python text2video_zero.py                                                         the model shipped with this repository
python text2video_zero.py --model stable-diffusion-v1-5/stable-diffusion-v1-5 --prompt "a panda is playing guitar"
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from common import numbers
from common.command_line import Parser, run_cli
from common.shipped import GUIDANCE, SHAPES_SD
from comparison.arguments import add_run_arguments, check_arguments, result_folder
from comparison.run import compare_and_save, open_pipeline
from pipelines import TextToVideoZeroPipeline
from pipelines.cache_options import add_cache_arguments
from pipelines.loading import SCHEDULERS, check_steps
from pipelines.text_to_video_zero import default_moments

PROMPTS = {  # by whether the model is the shipped one
    True: "a large red circle left of a small blue square on a striped gray background",
    False: "a panda is playing guitar on times square",
}
MOTION = {True: 64.0, False: 12.0}  # latents move by whole cells; the shipped model's are 64 of these pixels wide


def parser() -> Parser:
    p = Parser(description=__doc__)
    p.add_argument("--model", metavar="ID_OR_PATH", help="diffusers directory or hub id (default: the shipped model)")
    p.add_argument("--prompt", help="(default: an example)")
    p.add_argument("--negative-prompt", help="negative prompt")
    p.add_argument("--video-length", type=numbers.whole(1, 10_000), default=8, metavar="FRAMES", help="frames")
    p.add_argument("--scheduler", help=f"{', '.join(SCHEDULERS)} (default: the model's own)")
    p.add_argument("--steps", type=numbers.whole(2, numbers.MOST_STEPS), default=50, help="denoising steps")
    p.add_argument(
        "--t0",
        type=numbers.whole(0, numbers.MOST_STEPS),
        help="step at which motion is added, counted back from the last (default: 44 of 50)",
    )
    p.add_argument(
        "--t1",
        type=numbers.whole(0, numbers.MOST_STEPS),
        help="step from which all frames are denoised, counted back from the last (default: 47 of 50)",
    )
    for axis in "xy":
        p.add_argument(
            f"--motion-{axis}", type=numbers.real(-512, 512), metavar="PIXELS",
            help="motion per frame, for a frame of 512 pixels (default: 12; 64 for the shipped model)",
        )  # fmt: skip
    p.add_argument("--guidance-scale", type=numbers.guidance, help="(default: 7.5; 2.5 for the shipped model)")
    p.add_argument("--height", type=numbers.pixels, help="pixels (default: the model's own)")
    p.add_argument("--width", type=numbers.pixels, help="pixels (default: the model's own)")
    p.add_argument("--fps", type=numbers.whole(1, 1000), default=4, help="frames per second")
    add_cache_arguments(p, interval=5, branch=1)
    add_run_arguments(p)
    return p


def run(args: argparse.Namespace) -> None:
    # 1. Check what can be checked before a model is loaded.
    settings = check_arguments(args)
    cache, dtype = settings.cache, settings.dtype
    t0, t1 = (
        given if given is not None else usual
        for given, usual in zip((args.t0, args.t1), default_moments(args.steps), strict=True)
    )
    if not 0 <= t0 < t1 < args.steps:
        raise ValueError(f"--t0 is {t0} and --t1 {t1}; they must satisfy 0 ≤ t0 < t1 < {args.steps} (the steps)")
    shipped = args.model is None
    model = SHAPES_SD if shipped else args.model
    out = result_folder(args, settings, f"{Path(model).name}-video")

    # 2. Load, and check what the model decides.
    pipe = open_pipeline(TextToVideoZeroPipeline, args, model, dtype)
    check_steps(pipe, args.steps)
    loops = (args.steps - t1, t1 - t0, t1 + 1)
    if min(loops) <= max(cache.center or 0, *(cache.cache_steps or ()), 0):
        raise ValueError(f"--center and --cache-steps apply to each of the three loops, which have {loops} steps")
    pipe.start_cache(cache, min(loops), min(loops))
    if shipped:
        print("No --model given: using the small model of coloured shapes that ships with this repository.")
    arguments = {
        "prompt": args.prompt or PROMPTS[shipped],
        "negative_prompt": args.negative_prompt,
        "video_length": args.video_length,
        "num_inference_steps": args.steps,
        "t0": t0,
        "t1": t1,
        "motion_field_strength_x": MOTION[shipped] if args.motion_x is None else args.motion_x,
        "motion_field_strength_y": MOTION[shipped] if args.motion_y is None else args.motion_y,
        "guidance_scale": GUIDANCE[shipped] if args.guidance_scale is None else args.guidance_scale,
        "height": args.height,
        "width": args.width,
    }

    # 3. Run both ways in turn, show and save.
    compare_and_save(
        args,
        settings,
        {"pipeline": pipe},
        lambda way, generators: pipe(
            **arguments, **(cache.arguments if way == "deepcache" else {}), generator=generators[0], output_type="pt"
        ),
        resolved=arguments,
        out=out,
        num_images=1,
        fps=args.fps,
    )


def main(argv: list[str] | None = None) -> int:
    return run_cli(lambda: run(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
