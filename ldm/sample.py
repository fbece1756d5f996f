"""Class-conditional images of LDM-4-G with DeepCache, or of the small model that ships with this repository.

python -m ldm.sample                                                     the shipped model, 64 images
python -m ldm.sample --model cin256-v2/model.ckpt --num-images 50000 --batch-size 50 --cache-interval 5
accelerate launch -m ldm.sample --model …                                on several GPUs

Runs are resumable: rerun the same command. The result is samples.npz (with labels) and grid.png.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from diffusers import PNDMScheduler
from diffusers.utils.logging import disable_progress_bar
from torch import Tensor

from common import numbers
from common.command_line import Parser, run_cli
from common.device import resolve_device, resolve_dtype
from common.environment import versions
from common.shipped import SHAPES_LDM
from image_sets.batches import Batch, digest
from image_sets.generate import Run, add_set_arguments, device_of_process, make_set
from image_sets.sets import ImageSet
from pipelines.adams_bashforth import ORDERS, AdamsBashforthScheduler
from pipelines.cache_options import EXTENSIONS, add_cache_arguments, cache_config, cache_name
from unets.cache.config import CacheConfig
from unets.cache.zeroed import zero_cached_features

from .checkpoint import load_pipeline


@dataclass(frozen=True)
class Settings:
    """The settings that the images of a set are made with."""

    model: str | None = None  # file or directory; None: the shipped model
    steps: int = 250
    sampler: str = "ddim"
    eta: float = 0.0
    guidance_scale: float = 1.5
    labels: str = "random"
    cache: CacheConfig = field(default_factory=CacheConfig)
    cache_label: str | None = None  # in the folder's name, instead of the cache's own name
    zero_cache: bool = False
    seed: int = 0
    dtype: str = "float32"

    @property
    def folder(self) -> str:
        """The default folder of the set."""
        cache = self.cache_label or self.cache.name()
        name = f"{Path(self.model or SHAPES_LDM).stem}-{self.sampler}-{self.steps}-{cache}"
        name += f"-g{self.guidance_scale:g}-eta{self.eta:g}-{self.labels}-seed{self.seed}-{self.dtype}"
        return name + ("-zero" if self.zero_cache else "")


def parser() -> Parser:
    p = Parser(prog="python -m ldm.sample", description=__doc__)
    p.add_argument(
        "--model", metavar="FILE_OR_DIR",
        help="CompVis's model.ckpt, or the directory that ldm.convert made from it (default: the shipped model)",
    )  # fmt: skip
    p.add_argument("--steps", type=numbers.steps, default=250, help="denoising steps")
    p.add_argument(
        "--sampler", choices=["ddim", "plms", *ORDERS], default="ddim",
        help="ab2 and ab3 are of second and third order, for runs of few steps",
    )  # fmt: skip
    p.add_argument("--eta", type=numbers.real(0, 1), default=0.0, help="ddim's η; 0 is deterministic")
    p.add_argument("--guidance-scale", type=numbers.guidance, default=1.5)
    p.add_argument(
        "--labels", default="random",
        help="random; balanced, which goes through the classes in turn; or a list such as 207,88, taken in turn",
    )  # fmt: skip
    add_cache_arguments(p, interval=5, branch=0, extensions=EXTENSIONS)
    p.add_argument("--zero-cache", action="store_true", help="replace the cached feature by zeros: the paper's Table 5")
    add_set_arguments(p)
    return p


def labels_of(indices: Sequence[int], choice: str, num_classes: int, seed: int) -> np.ndarray:
    """Class labels (B,) of images, each determined by the seed and its index only.

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


def settings_of(args: argparse.Namespace) -> Settings:
    """The settings of these arguments. Raises ValueError naming the one that is wrong."""
    cache = cache_config(args)
    return Settings(
        model=args.model, steps=args.steps, sampler=args.sampler, eta=args.eta, guidance_scale=args.guidance_scale,
        labels=args.labels, cache=cache, cache_label=cache_name(args, cache), zero_cache=args.zero_cache,
        seed=args.seed, dtype=args.dtype,
    )  # fmt: skip


def prepare(settings: Settings, *, device: torch.device, out: Path | None = None, quiet: bool = False) -> Run:
    """Loads the model; its images go to `out`, or to a folder under outputs/.

    Raises:
        ValueError: naming the setting that is wrong.
    """
    # 1. Check what can be checked before a model is loaded.
    if settings.eta < 0 or (settings.eta and settings.sampler != "ddim"):
        raise ValueError(f"--eta is {settings.eta}; it must be at least 0, and is for ddim only")

    # 2. Load.
    if quiet:
        disable_progress_bar()
    pipe = load_pipeline(settings.model or SHAPES_LDM, resolve_dtype(settings.dtype, device))
    if settings.sampler == "plms":
        pipe.scheduler = PNDMScheduler.from_config(pipe.scheduler.config, skip_prk_steps=True)
    if settings.sampler in ORDERS:
        pipe.scheduler = AdamsBashforthScheduler.from_config(pipe.scheduler.config)
        pipe.scheduler.solver_order = ORDERS[settings.sampler]
    labels_of([0], settings.labels, pipe.num_classes, settings.seed)
    num_calls = len(pipe.set_timesteps(settings.steps, "cpu"))
    pipe.start_cache(settings.cache, pipe.schedule_length(settings.steps, num_calls), num_calls, eta=settings.eta)
    call: dict[str, Any] = {
        "num_inference_steps": settings.steps, "guidance_scale": settings.guidance_scale, "eta": settings.eta,
    }  # fmt: skip
    recorded = {
        "weights": {part: digest(getattr(pipe, part)) for part in ("unet", "vqvae", "class_embedder")},
        "sampler": settings.sampler, "labels": settings.labels, "seed": settings.seed, "dtype": settings.dtype,
        **call, **settings.cache.to_json(), **({"zero_cache": True} if settings.zero_cache else {}),
    }  # fmt: skip
    device = device_of_process(device)
    pipe.to(device)
    pipe.set_progress_bar_config(disable=quiet or not PartialState().is_main_process, leave=False)
    if settings.zero_cache:
        zero_cached_features(pipe.unet)

    def labels(indices: Sequence[int]) -> np.ndarray:
        return labels_of(indices, settings.labels, pipe.num_classes, settings.seed)

    def make(batch: Batch, cache: CacheConfig) -> Tensor:
        (images,) = pipe(
            labels(batch.indices).tolist(), generator=batch.generators, output_type="pt", return_dict=False,
            **call, **cache.arguments,
        )  # (B, 3, H, W) in [0, 1]  # fmt: skip
        return images * 2 - 1

    image_set = ImageSet(out or Path("outputs") / settings.folder, recorded, versions(device))
    return Run(image_set, pipe.unet, settings.cache, make, settings.seed, labels)


def run(args: argparse.Namespace) -> None:
    settings, device = settings_of(args), resolve_device(args.device)
    prepared = prepare(settings, device=device, out=args.out, quiet=args.quiet)
    made = make_set(prepared, args.num_images, args.batch_size, png=args.png, quiet=args.quiet)
    print(f"{made}; {args.num_images} and their overview in {prepared.image_set.out}")


def main(argv: list[str] | None = None) -> int:
    return run_cli(lambda: run(parser().parse_args(argv)), resumable=True)


if __name__ == "__main__":
    sys.exit(main())
