"""Images of a DDPM with DeepCache: CIFAR-10, LSUN, or the small model that ships with this repository.

python -m ddpm.sample                                                    the shipped model, 64 images
python -m ddpm.sample --config cifar10 --checkpoint ema_cifar10.ckpt --num-images 50000 --batch-size 500
accelerate launch -m ddpm.sample --config bedroom --checkpoint DIR …              on several GPUs

Runs are resumable: rerun the same command. The result is samples.npz and grid.png.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import numbers
from common.command_line import Parser, run_cli
from common.device import resolve_device, resolve_dtype
from common.environment import versions
from common.shipped import SHAPES_DDPM
from image_sets.batches import Batch, digest
from image_sets.generate import Run, add_set_arguments, device_of_process, make_set
from image_sets.sets import ImageSet
from pipelines.adams_bashforth import ORDERS
from pipelines.cache_options import add_cache_arguments, cache_config, cache_name
from unets.cache.config import CacheConfig
from unets.cache.run import CacheRun
from unets.cache.zeroed import zero_cached_features

from .checkpoint import load_unet
from .configs import CONFIGS
from .sampler import ab_sample, ddim_sample, ddpm_sample, noise_like, timesteps_of


@dataclass(frozen=True)
class Settings:
    """The settings that the images of a set are made with."""

    config: str = "shapes"  # which model, of CONFIGS or the shipped one
    checkpoint: str | None = None
    steps: int = 100
    skip_type: str | None = None  # None: the model's own
    sampler: str = "ddim"
    eta: float = 0.0
    cache: CacheConfig = field(default_factory=CacheConfig)
    cache_label: str | None = None  # in the folder's name, instead of the cache's own name
    zero_cache: bool = False
    seed: int = 0
    dtype: str = "float32"

    @property
    def timestep_spacing(self) -> str:
        """`skip_type`, or the model's own."""
        config = CONFIGS.get(self.config)
        return self.skip_type or (config.skip_type if config else "quad")

    @property
    def folder(self) -> str:
        """The default folder of the set."""
        name = f"{self.config}-{self.sampler}-{self.steps}-{self.timestep_spacing}-"
        name += (self.cache_label or self.cache.name()) + ("-zero" if self.zero_cache else "")
        return f"{name}-eta{self.eta:g}-seed{self.seed}-{self.dtype}"


def parser() -> Parser:
    p = Parser(prog="python -m ddpm.sample", description=__doc__)
    p.add_argument("--config", choices=["shapes", *CONFIGS], default="shapes", help="which model")
    p.add_argument(
        "--checkpoint", metavar="FILE_OR_DIR", help="state dict of ermongroup/ddim, or diffusers directory"
    )  # fmt: skip
    p.add_argument("--steps", type=numbers.steps, default=100, help="denoising steps")
    p.add_argument("--skip-type", choices=["uniform", "quad"], help="(default: uniform for LSUN, else quad)")
    p.add_argument(
        "--sampler", choices=["ddim", "ddpm", *ORDERS], default="ddim",
        help="ddpm is ancestral sampling; ab2 and ab3 are of second and third order, for runs of few steps",
    )  # fmt: skip
    p.add_argument("--eta", type=numbers.real(0, 1), default=0.0, help="ddim's η; 0 is deterministic")
    add_cache_arguments(p, interval=5, branch=2, extensions=("forecast", "refresh_interval", "skip_interval"))
    p.add_argument("--zero-cache", action="store_true", help="replace the cached feature by zeros: the paper's Table 5")
    add_set_arguments(p)
    return p


def settings_of(args: argparse.Namespace) -> Settings:
    """The settings of these arguments. Raises ValueError naming the one that is wrong."""
    cache = cache_config(args)
    return Settings(
        config=args.config, checkpoint=args.checkpoint, steps=args.steps, skip_type=args.skip_type,
        sampler=args.sampler, eta=args.eta, cache=cache, cache_label=cache_name(args, cache),
        zero_cache=args.zero_cache, seed=args.seed, dtype=args.dtype,
    )  # fmt: skip


def prepare(settings: Settings, *, device: torch.device, out: Path | None = None, quiet: bool = False) -> Run:
    """Loads the model; its images go to `out`, or to a folder under outputs/.

    Raises:
        ValueError: naming the setting that is wrong.
    """
    # 1. Check what can be checked before a model is loaded.
    if (settings.checkpoint is None) != (settings.config == "shapes"):
        raise ValueError("--config and --checkpoint belong together, for example --config cifar10 --checkpoint FILE")
    timesteps = timesteps_of(settings.steps, settings.timestep_spacing)
    if settings.eta < 0 or (settings.eta and settings.sampler != "ddim"):
        raise ValueError(f"--eta is {settings.eta}; it must be at least 0, and is for ddim only")
    if settings.sampler == "ddpm" or settings.eta:
        settings.cache.refuse("skip_interval", "skip_steps")  # as the loop does, before a folder is made

    # 2. Load.
    dtype = resolve_dtype(settings.dtype, device)
    unet = load_unet(settings.checkpoint or SHAPES_DDPM, CONFIGS.get(settings.config), dtype).eval()
    CacheRun(settings.cache, unet, len(timesteps), len(timesteps))
    device = device_of_process(device)
    recorded = {
        "model": settings.config, "weights": digest(unet), "timesteps": timesteps, "seed": settings.seed,
        "dtype": settings.dtype, "sampler": settings.sampler, "eta": settings.eta, **settings.cache.to_json(),
        **({"zero_cache": True} if settings.zero_cache else {}),
    }  # fmt: skip
    unet.to(device)
    if settings.zero_cache:
        zero_cached_features(unet)

    def make(batch: Batch, cache: CacheConfig) -> Tensor:
        return sample(
            unet, batch, timesteps, sampler=settings.sampler, eta=settings.eta, device=device, **cache.arguments
        )

    image_set = ImageSet(out or Path("outputs") / settings.folder, recorded, versions(device))
    return Run(image_set, unet, settings.cache, make, settings.seed)


def sample(
    unet: Any,
    batch: Batch,
    timesteps: list[int],
    *,
    sampler: str = "ddim",
    eta: float = 0.0,
    device: torch.device | str = "cpu",
    **cache: Any,
) -> Tensor:
    """Images (B, 3, H, W) in [−1, 1] of a batch. `cache` has arguments of `denoise`."""
    side = unet.config.sample_size
    x = noise_like(
        torch.empty(len(batch.indices), unet.config.in_channels, side, side, device=device), batch.generators
    )
    with torch.no_grad():
        if sampler == "ddpm":
            return ddpm_sample(unet, x, timesteps, generators=batch.generators, **cache)
        if sampler in ORDERS:
            return ab_sample(unet, x, timesteps, order=ORDERS[sampler], **cache)
        return ddim_sample(unet, x, timesteps, eta=eta, generators=batch.generators, **cache)


def run(args: argparse.Namespace) -> None:
    settings, device = settings_of(args), resolve_device(args.device)
    prepared = prepare(settings, device=device, out=args.out, quiet=args.quiet)
    made = make_set(prepared, args.num_images, args.batch_size, png=args.png, quiet=args.quiet)
    print(f"{made}; {args.num_images} and their overview in {prepared.image_set.out}")


def main(argv: list[str] | None = None) -> int:
    return run_cli(lambda: run(parser().parse_args(argv)), resumable=True)


if __name__ == "__main__":
    sys.exit(main())
