"""Images of a set of prompts with Stable Diffusion and DeepCache, for their CLIP Score.

python -m eval.generate --num-images 256                                 the shipped model, captions of its own kind
python -m eval.generate --model stable-diffusion-v1-5/stable-diffusion-v1-5 --prompts parti --dtype float16
python -m eval.generate --model … --prompts captions_val2017.json --cache-interval 1 --steps 25       fewer steps
python -m eval.generate --model nota-ai/bk-sdm-base --prompts parti --cache-interval 1                BK-SDM
accelerate launch -m eval.generate --model … --prompts coco              on several GPUs

There is one image of each prompt, by default of all prompts. Runs are resumable: rerun the same command.
The result is samples.npz, prompts.txt (one line for each image) and grid.png:

python -m eval.clip_score DIR/samples.npz --prompts DIR/prompts.txt

The safety checker is off: it would blacken images that are to be scored.
"""

from __future__ import annotations

import argparse
import sys

from accelerate import PartialState

from common import numbers
from common.command_line import Parser, run_cli
from common.device import resolve_device
from image_sets.batches import ROUNDINGS
from image_sets.generate import add_set_arguments, make_set
from image_sets.reading import count_images
from pipelines.cache_options import EXTENSIONS, add_cache_arguments, cache_config, cache_name
from pipelines.loading import SCHEDULERS

from .generation.prompts import SHAPES_NUMBER, open_prompts
from .generation.text import Settings, prepare, write_prompts


def parser() -> Parser:
    p = Parser(prog="python -m eval.generate", description=__doc__)
    p.add_argument("--model", metavar="ID_OR_PATH", help="diffusers directory or hub id (default: the shipped model)")
    p.add_argument("--variant", help="of the weights, such as fp16 (default: none, or the only one available)")
    p.add_argument(
        "--prompts", metavar="NAME_OR_FILE",
        help="parti, coco, shapes, or a file: .tsv with a column Prompt, .json of COCO captions, else one prompt "
        f"per line (default: shapes, for the shipped model only; {SHAPES_NUMBER} of them unless --num-images is given)",
    )  # fmt: skip
    p.add_argument("--negative-prompt", help="negative prompt, for all prompts")
    p.add_argument("--scheduler", choices=list(SCHEDULERS), default="plms")
    p.add_argument("--steps", type=numbers.steps, default=50, help="denoising steps")
    p.add_argument("--guidance-scale", type=numbers.guidance, help="(default: 7.5; 2.5 for the shipped model)")
    p.add_argument("--height", type=numbers.pixels, help="pixels (default: the model's own)")
    p.add_argument("--width", type=numbers.pixels, help="pixels (default: the model's own)")
    p.add_argument(
        "--rounding", choices=ROUNDINGS, default="nearest",
        help="conversion to 8 bits; truncate is what the original's experiments/generate.py does",
    )  # fmt: skip
    p.add_argument(
        "--noise-period", type=numbers.images, metavar="B",
        help="every B images start from the same noise, as in the original's experiments/generate.py, which seeds each "
        "batch again (default: noise does not repeat)",
    )  # fmt: skip
    add_cache_arguments(p, interval=5, branch=1, extensions=EXTENSIONS)
    add_set_arguments(p, num_images=None, batch_size=8)
    return p


def settings_of(args: argparse.Namespace) -> Settings:
    """The settings of these arguments. Raises ValueError naming the one that is wrong."""
    cache = cache_config(args)
    if args.model is not None and args.prompts is None:
        raise ValueError("--model needs --prompts: parti, coco, or a file")
    return Settings(
        model=args.model, variant=args.variant, prompts=args.prompts or "shapes", negative_prompt=args.negative_prompt,
        scheduler=args.scheduler, steps=args.steps, guidance_scale=args.guidance_scale, height=args.height,
        width=args.width, rounding=args.rounding, cache=cache, cache_label=cache_name(args, cache), seed=args.seed,
        noise_period=args.noise_period, dtype=args.dtype,
    )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    settings, device = settings_of(args), resolve_device(args.device)
    prompts = open_prompts(settings.prompts, quiet=args.quiet)
    num_images = args.num_images or prompts.count or SHAPES_NUMBER
    prompts.first(num_images)  # raises if there are not as many
    prepared = prepare(settings, device=device, out=args.out, quiet=args.quiet)
    made = make_set(prepared, num_images, args.batch_size, png=args.png, quiet=args.quiet)
    out = prepared.image_set.out
    if PartialState().is_main_process:
        write_prompts(out, prompts.first(count_images(prepared.image_set.samples)))  # a larger set may have existed
    print(f"{made}; {num_images}, their prompts and overview in {out}")


def main(argv: list[str] | None = None) -> int:
    return run_cli(lambda: run(parser().parse_args(argv)), resumable=True)


if __name__ == "__main__":
    sys.exit(main())
