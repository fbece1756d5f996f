"""Images of a set of prompts with Stable Diffusion and DeepCache, for their CLIP Score.

python -m eval.generate --num-images 256                                 the shipped model, captions of its own kind
python -m eval.generate --model stable-diffusion-v1-5/stable-diffusion-v1-5 --prompts parti --dtype float16
python -m eval.generate --model … --prompts captions_val2017.json --cache-interval 1 --steps 25       fewer steps
python -m eval.generate --model nota-ai/bk-sdm-base --prompts parti --cache-interval 1                BK-SDM
accelerate launch -m eval.generate --model … --prompts coco              on several GPUs

There is one image of each prompt, by default of all prompts. A run that was killed is continued by the same command.
The result is samples.npz, prompts.txt (one line for each image) and grid.png:

python -m eval.clip_score DIR/samples.npz --prompts DIR/prompts.txt

The safety checker is off: it would blacken images that are to be scored.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor

from pipelines import StableDiffusionPipeline
from pipelines.loading import SCHEDULERS, SHAPES, load_pipeline
from pipelines.run_cache import check_cache_arguments
from stable_diffusion import GUIDANCE

from .arguments import BEYOND, Formatter, add_cache_arguments, add_set_arguments, at_least, exit_status, schedule_of
from .files import written_aside
from .image_sets import ROUNDINGS, Batch, ImageSet, Run, device_of_process, digest, make_set
from .pictures import check_arguments, check_steps, schedule_name
from .prompts import SHAPES_NUMBER, PromptSet, open_prompts
from .read_images import count_images


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m eval.generate", description=__doc__, formatter_class=Formatter)
    p.add_argument("--model", metavar="ID_OR_PATH", help="diffusers directory or hub id (default: the shipped model)")
    p.add_argument(
        "--prompts", metavar="NAME_OR_FILE",
        help="parti, coco, shapes, or a file: .tsv with a column Prompt, .json of COCO captions, else one prompt "
        f"a line (default: shapes, for the shipped model alone; {SHAPES_NUMBER} of them unless --num-images is given)",
    )  # fmt: skip
    p.add_argument("--negative-prompt", help="for all prompts")
    p.add_argument("--scheduler", choices=list(SCHEDULERS), default="plms")
    p.add_argument("--steps", type=int, default=50, help="denoising steps")
    p.add_argument("--guidance-scale", type=float, help="(default: 7.5; 2.5 for the shipped model)")
    p.add_argument("--height", type=int, help="pixels (default: the model's own)")
    p.add_argument("--width", type=int, help="pixels (default: the model's own)")
    p.add_argument(
        "--rounding", choices=ROUNDINGS, default="nearest",
        help="to whole grey levels; truncate is what the original's experiments/generate.py does",
    )  # fmt: skip
    add_cache_arguments(p, interval=5, branch=1, beyond=list(BEYOND))
    add_set_arguments(p, num_images=None, batch_size=8)
    return p


def make_images(pipe: Any, prompts: list[str], generators: list[torch.Generator], **arguments: Any) -> Tensor:
    """An image of each prompt, float64 (B, 3, H, W) in [−1, 1] on the CPU. `arguments` are those of the pipeline.

    A negative prompt is one text for all. The pipeline gives [0, 1], and in float64 the way there and back is exact.
    """
    if (negative := arguments.pop("negative_prompt", None)) is not None:
        arguments["negative_prompt"] = [negative] * len(prompts)
    (images, *_) = pipe(prompt=prompts, generator=generators, output_type="pt", return_dict=False, **arguments)
    return images.cpu().double() * 2 - 1


def write_prompts(out: Path, texts: list[str]) -> None:
    """Writes `prompts.txt`, one line for each image."""
    with written_aside(out / "prompts.txt") as aside:
        aside.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")


def prompts_of(args: argparse.Namespace) -> tuple[PromptSet, int]:
    """The prompts that the arguments name, and how many images are to be made of them."""
    if args.model is not None and args.prompts is None:
        raise ValueError("--model needs --prompts: parti, coco, or a file")
    prompts = open_prompts(args.prompts or "shapes", quiet=args.quiet)
    num_images = args.num_images or prompts.count or SHAPES_NUMBER
    prompts.first(num_images)
    return prompts, num_images


def prepare(args: argparse.Namespace) -> Run:
    """What the arguments ask for, ready to be made.

    Raises:
        ValueError: naming the argument that is wrong.
    """
    # 1. Check what can be checked before a model is loaded.
    at_least(args, batch_size=1)
    cache, device, dtype = check_arguments(args)
    shipped = args.model is None
    prompts, _ = prompts_of(args)

    # 2. Load, and check what the model decides.
    model = SHAPES if shipped else args.model
    pipe = load_pipeline(
        StableDiffusionPipeline, model, dtype=dtype, scheduler=args.scheduler, quiet=args.quiet,
        safety_checker=None, requires_safety_checker=False,
    )  # fmt: skip
    if pipe.unet.config.in_channels != pipe.vae.config.latent_channels:
        raise ValueError(f"{model} is an inpainting model; give --model one that starts from noise alone")
    check_steps(pipe, args.steps)
    pipe.scheduler.set_timesteps(args.steps)
    pipe.plan_cache(args.steps, len(pipe.scheduler.timesteps), **schedule_of(cache))
    check_cache_arguments(pipe.unet, len(pipe.scheduler.timesteps), **cache)
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    call: dict[str, Any] = {
        "num_inference_steps": args.steps,
        "guidance_scale": GUIDANCE[shipped] if args.guidance_scale is None else args.guidance_scale,
        "negative_prompt": args.negative_prompt,
        "height": args.height or side,
        "width": args.width or side,
        **cache,
    }
    name = f"{Path(model).name}-{Path(prompts.name).stem}-{args.scheduler}-{args.steps}-{schedule_name(args)}"
    extras = f"m{args.cache_branch_id}-g{call['guidance_scale']:g}-{call['width']}x{call['height']}-{args.rounding}"
    out = args.out or Path("outputs") / f"{name}-{extras}-seed{args.seed}-{args.dtype}"
    settings = {
        "weights": {part: digest(getattr(pipe, part)) for part in ("unet", "vae", "text_encoder")},
        "prompts": {"name": prompts.name, "count": prompts.count, "sha256": prompts.digest},
        "scheduler": args.scheduler,
        "rounding": args.rounding,
        "seed": args.seed,
        "dtype": args.dtype,
        **call,
    }
    device = device_of_process(device)
    pipe.to(device)
    pipe.set_progress_bar_config(disable=args.quiet or not PartialState().is_main_process, leave=False)

    def make(batch: Batch) -> Tensor:
        return make_images(pipe, [prompts.text(k) for k in batch.indices], batch.generators, **call)

    return Run(ImageSet(out, settings), make, pipe.unet)


def work(args: argparse.Namespace) -> None:
    run = prepare(args)
    prompts, num_images = prompts_of(args)
    made = make_set(run, args, num_images, rounding=args.rounding)
    out = run.image_set.out
    if PartialState().is_main_process:
        write_prompts(out, prompts.first(count_images(run.image_set.samples)))  # a larger set may have been there
    print(f"{made}; {num_images}, their prompts and overview in {out}")


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return exit_status(lambda: work(args))


if __name__ == "__main__":
    sys.exit(main())
