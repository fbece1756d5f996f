"""Images of a DDPM with DeepCache: CIFAR-10, LSUN, or the small model that ships with this repository.

python -m ddpm.sample                                                    the shipped model, 64 images
python -m ddpm.sample --config cifar10 --checkpoint ema_cifar10.ckpt --num-images 50000 --batch-size 500
accelerate launch -m ddpm.sample --config bedroom --checkpoint DIR …              on several GPUs

A run that was killed is continued by the same command. The result is samples.npz and grid.png.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval.arguments import (
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

from .checkpoint import load_unet
from .configs import CONFIGS
from .sampler import ddim_sample, ddpm_sample, noise_like, timesteps_of

SHAPES = Path(__file__).parent.parent / "assets" / "shapes-ddpm"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=Formatter)
    p.add_argument("--config", choices=["shapes", *CONFIGS], default="shapes", help="which model")
    p.add_argument(
        "--checkpoint", metavar="FILE_OR_DIR", help="state dict of ermongroup/ddim, or diffusers directory"
    )  # fmt: skip
    p.add_argument("--steps", type=int, default=100, help="denoising steps")
    p.add_argument("--skip-type", choices=["uniform", "quad"], help="(default: uniform for LSUN, else quad)")
    p.add_argument("--sampler", choices=["ddim", "ddpm"], default="ddim", help="ddpm is ancestral sampling")
    p.add_argument("--eta", type=float, default=0.0, help="of ddim; 0 is deterministic")
    add_cache_arguments(p, interval=5, branch=2, beyond=["forecast", "refresh_interval"])
    p.add_argument("--zero-cache", action="store_true", help="zeros for the kept feature: the paper's Table 5")
    add_set_arguments(p)
    return p


def sample(
    unet: Any,
    batch: Batch,
    timesteps: list[int],
    *,
    sampler: str = "ddim",
    eta: float = 0.0,
    device: torch.device | str = "cpu",
    **settings: Any,
) -> Tensor:
    """Images (B, 3, H, W) in [−1, 1] of a batch. `settings` are those of `denoise`."""
    side = unet.config.sample_size
    x = noise_like(
        torch.empty(len(batch.indices), unet.config.in_channels, side, side, device=device), batch.generators
    )
    with torch.no_grad():
        if sampler == "ddpm":
            return ddpm_sample(unet, x, timesteps, generators=batch.generators, **settings)
        return ddim_sample(unet, x, timesteps, eta=eta, generators=batch.generators, **settings)


def prepare(args: argparse.Namespace) -> Run:
    """What the arguments ask for, ready to be made.

    Raises:
        ValueError: naming the argument that is wrong.
    """
    # 1. Check what can be checked before a model is loaded.
    at_least(args, num_images=1, batch_size=1, seed=0, steps=1)
    cache = cache_settings(args)
    device, dtype = device_and_dtype(args)
    if (args.checkpoint is None) != (args.config == "shapes"):
        raise ValueError("--config and --checkpoint belong together, for example --config cifar10 --checkpoint FILE")
    config = CONFIGS.get(args.config)
    skip_type = args.skip_type or (config.skip_type if config else "quad")
    timesteps = timesteps_of(args.steps, skip_type)
    if args.eta < 0 or (args.eta and args.sampler == "ddpm"):
        raise ValueError(f"--eta is {args.eta}; it must be at least 0, and is ddim's alone")

    # 2. Load.
    unet = load_unet(args.checkpoint or SHAPES, config, dtype).eval()
    sampling: dict[str, Any] = {"sampler": args.sampler, "eta": args.eta, **cache}
    name = f"{args.config}-{args.sampler}-{args.steps}-{skip_type}-{schedule_name(args)}-m{args.cache_branch_id}"
    name += "-zero" if args.zero_cache else ""
    out = args.out or Path("outputs") / f"{name}-eta{args.eta:g}-seed{args.seed}-{args.dtype}"
    settings = {"model": args.config, "weights": digest(unet), "timesteps": timesteps, "seed": args.seed,
                "dtype": args.dtype, **sampling}  # fmt: skip
    check_cache_arguments(unet, len(timesteps), **cache)
    device = device_of_process(device)
    unet.to(device)

    if args.zero_cache:
        zero_cached_features(unet)
        settings["zero_cache"] = True

    def make(batch: Batch) -> Tensor:
        return sample(unet, batch, timesteps, device=device, **sampling)

    return Run(ImageSet(out, settings), make, unet)


def work(args: argparse.Namespace) -> None:
    run = prepare(args)
    made = make_set(run, args, args.num_images)
    print(f"{made}; {args.num_images} and their overview in {run.image_set.out}")


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return exit_status(lambda: work(args))


if __name__ == "__main__":
    sys.exit(main())
