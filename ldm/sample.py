"""Class-conditional images of LDM-4-G with DeepCache, or of the small model that ships with this repository.

python -m ldm.sample                                                     the shipped model, 64 images
python -m ldm.sample --model cin256-v2/model.ckpt --num-images 50000 --batch-size 50 --cache-interval 5
accelerate launch -m ldm.sample --model …                                on several GPUs

A run that was killed is continued by the same command. The result is samples.npz (with labels) and grid.png.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from diffusers import PNDMScheduler
from diffusers.utils.logging import disable_progress_bar

from eval.arguments import (
    BEYOND,
    Formatter,
    add_cache_arguments,
    add_set_arguments,
    at_least,
    cache_settings,
    device_and_dtype,
    exit_status,
)
from eval.image_sets import Batch, ImageSet, Run, device_of_process, digest, make_set
from eval.pictures import schedule_name
from eval.zero_cache import zero_cached_features
from pipelines.run_cache import check_cache_arguments

from .checkpoint import load_pipeline

SHAPES = Path(__file__).parent.parent / "assets" / "shapes-ldm"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=Formatter)
    p.add_argument(
        "--model", metavar="FILE_OR_DIR",
        help="CompVis's model.ckpt, or a directory that ldm.convert made of it (default: the shipped model)",
    )  # fmt: skip
    p.add_argument("--steps", type=int, default=250, help="denoising steps")
    p.add_argument("--sampler", choices=["ddim", "plms"], default="ddim")
    p.add_argument("--eta", type=float, default=0.0, help="of ddim; 0 is deterministic")
    p.add_argument("--guidance-scale", type=float, default=1.5)
    p.add_argument(
        "--labels", default="random",
        help="random; balanced, which goes through the classes in turn; or a list such as 207,88, taken in turn",
    )  # fmt: skip
    add_cache_arguments(p, interval=5, branch=0, beyond=list(BEYOND))
    p.add_argument("--zero-cache", action="store_true", help="zeros for the kept feature: the paper's Table 5")
    add_set_arguments(p)
    return p


def labels_of(indices: Sequence[int], choice: str, num_classes: int, seed: int) -> np.ndarray:
    """Class labels (B,) of images, each from the seed and its index alone.

    Raises:
        ValueError: a choice that is neither random nor balanced nor a list of classes.
    """
    if choice == "random":
        return np.array([np.random.default_rng((seed, k, 1)).integers(num_classes) for k in indices])
    if choice == "balanced":
        return np.array([k % num_classes for k in indices])
    try:
        given = [int(part) for part in choice.split(",")]
    except ValueError:
        given = [-1]
    if not all(0 <= label < num_classes for label in given):
        raise ValueError(f"--labels is {choice}; it must be random, balanced or classes from 0 to {num_classes - 1}")
    return np.array([given[k % len(given)] for k in indices])


def prepare(args: argparse.Namespace) -> Run:
    """What the arguments ask for, ready to be made.

    Raises:
        ValueError: naming the argument that is wrong.
    """
    # 1. Check what can be checked before a model is loaded.
    at_least(args, num_images=1, batch_size=1, seed=0, steps=1)
    cache = cache_settings(args)
    device, dtype = device_and_dtype(args)
    if args.eta < 0 or (args.eta and args.sampler == "plms"):
        raise ValueError(f"--eta is {args.eta}; it must be at least 0, and is ddim's alone")

    # 2. Load.
    if args.quiet:
        disable_progress_bar()
    pipe = load_pipeline(args.model or SHAPES, dtype)
    if args.sampler == "plms":
        pipe.scheduler = PNDMScheduler.from_config(pipe.scheduler.config, skip_prk_steps=True)
    labels_of([0], args.labels, pipe.num_classes, args.seed)
    timesteps = pipe.set_timesteps(args.steps, "cpu")
    check_cache_arguments(pipe.unet, len(timesteps), **cache)
    call: dict[str, Any] = {
        "num_inference_steps": args.steps, "guidance_scale": args.guidance_scale, "eta": args.eta, **cache
    }  # fmt: skip
    model = Path(args.model or SHAPES).stem
    name = f"{model}-{args.sampler}-{args.steps}-{schedule_name(args)}-m{args.cache_branch_id}"
    extras = f"g{args.guidance_scale:g}-eta{args.eta:g}-{args.labels}-seed{args.seed}-{args.dtype}"
    extras += "-zero" if args.zero_cache else ""
    out = args.out or Path("outputs") / f"{name}-{extras}"
    weights = {part: digest(getattr(pipe, part)) for part in ("unet", "vqvae", "class_embedder")}
    settings = {"weights": weights, "sampler": args.sampler, "labels": args.labels, "seed": args.seed,
                "dtype": args.dtype, **call}  # fmt: skip
    device = device_of_process(device)
    pipe.to(device)
    pipe.set_progress_bar_config(disable=args.quiet or not PartialState().is_main_process, leave=False)

    if args.zero_cache:
        zero_cached_features(pipe.unet)
        settings["zero_cache"] = True

    def labels(indices: Sequence[int]) -> np.ndarray:
        return labels_of(indices, args.labels, pipe.num_classes, args.seed)

    def make(batch: Batch) -> Any:
        (images,) = pipe(
            labels(batch.indices).tolist(), generator=batch.generators, output_type="pt", return_dict=False, **call
        )  # (B, 3, H, W) in [0, 1]
        return images * 2 - 1

    return Run(ImageSet(out, settings), make, pipe.unet, labels)


def work(args: argparse.Namespace) -> None:
    run = prepare(args)
    made = make_set(run, args, args.num_images)
    print(f"{made}; {args.num_images} and their overview in {run.image_set.out}")


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return exit_status(lambda: work(args))


if __name__ == "__main__":
    sys.exit(main())
