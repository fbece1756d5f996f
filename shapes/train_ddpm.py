"""Trains the shipped pixel-space model, `assets/shapes-ddpm`, from nothing but the renderer beside this file.

    python -m shapes.train_ddpm --work build/shapes-ddpm

The layout is a narrow version of the U-Net for CIFAR-10: 32 × 32 pixels, four levels, two layers per block, attention
at 16 × 16, hence twelve skip branches. Noise and loss are those of Ho et al. 2020, except for a second stage that
weights noisy pictures more. Runs are resumable: rerun the same command.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from torch.nn import functional as F

from common import numbers
from common.command_line import Parser, run_cli
from common.files import check_can_be_made
from common.shipped import SHAPES_DDPM

from .train_sd import batch_of_pictures
from .training import export_to, train

HELD_OUT = 256


def new_unet() -> UNet2DModel:
    """The U-Net with random weights."""
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=32,
        block_out_channels=(32, 64, 64, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        norm_num_groups=8,
        attention_head_dim=None,
    )


def new_scheduler() -> DDPMScheduler:
    """Betas linear from 1e-4 to 0.02 over 1000 steps."""
    return DDPMScheduler(beta_start=1e-4, beta_end=0.02, clip_sample=False)


def small_pictures(size: int, *seed: int, held_out: bool = False) -> torch.Tensor:
    """`size` pictures (B, 3, 32, 32) in [-1, 1]: the renderer's, every four pixels averaged."""
    return F.avg_pool2d(batch_of_pictures(size, *seed, held_out=held_out)[0], 2)


def train_unet(name: str, unet: Any, work: Path, steps: int, batch: int, greatest_weight: float) -> Any:
    """Predicts the noise ε, timesteps weighted by 1/ᾱ up to `greatest_weight`; 1 is unweighted (Ho et al., eq. 14).

    The second stage goes up to 200: the overall colour of a picture is decided where ᾱ is small, and there an error in
    ε is 1/√ᾱ times as large in the picture, which the unweighted loss ignores.
    """
    alphas = new_scheduler().alphas_cumprod

    def loss(unet: Any, pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        timesteps = torch.randint(0, len(alphas), (len(pictures),), generator=generator)
        noise = torch.randn(pictures.shape, generator=generator)
        alpha = alphas[timesteps][:, None, None, None]
        noisy = alpha.sqrt() * pictures + (1 - alpha).sqrt() * noise
        predicted = unet(noisy.to(memory_format=torch.channels_last), timesteps).sample
        return ((1 / alpha).clamp(max=greatest_weight) * (predicted - noise) ** 2).mean()

    fixed = small_pictures(HELD_OUT, 1, held_out=True)

    @torch.no_grad()
    def held_out(average: Any) -> dict[str, float]:
        return {"held_out": loss(average, fixed, torch.Generator().manual_seed(2**40)).item()}

    return train(
        name, unet,
        lambda step: loss(unet, small_pictures(batch, 0, step), torch.Generator().manual_seed(step)),
        steps=steps, learning_rate=1e-3, work=work, held_out=held_out,
    )  # fmt: skip


def parser() -> Parser:
    p = Parser(prog="python -m shapes.train_ddpm", description=__doc__)
    p.add_argument("--work", type=Path, default=Path("build/shapes-ddpm"), help="checkpoint and log")
    p.add_argument("--out", type=Path, default=SHAPES_DDPM, help="the pipeline")
    p.add_argument("--steps", type=numbers.whole(1, 1_000_000), default=6000, help="steps of the first stage")
    p.add_argument("--weighted-steps", type=numbers.whole(1, 1_000_000), default=8000, help="steps of the second")
    p.add_argument("--batch", type=numbers.batch, default=16)
    p.add_argument("--threads", type=numbers.whole(1, 1024), default=2)
    return p


def run(args: argparse.Namespace) -> None:
    check_can_be_made(args.out)
    torch.set_num_threads(args.threads)

    unet: Any = new_unet().to(memory_format=torch.channels_last)
    for name, steps, greatest_weight in (("unet", args.steps, 1.0), ("unet_weighted", args.weighted_steps, 200.0)):
        unet = train_unet(name, unet, args.work, steps, args.batch, greatest_weight).requires_grad_(True)
    unet = unet.to(memory_format=torch.contiguous_format)
    pipeline = DDPMPipeline(unet=unet, scheduler=new_scheduler())
    with export_to(args.out, args.work, "unet", "unet_weighted") as tmp_dir:
        pipeline.to(torch.float16).save_pretrained(tmp_dir, safe_serialization=True)


def main(argv: list[str] | None = None) -> int:
    return run_cli(lambda: run(parser().parse_args(argv)), resumable=True)


if __name__ == "__main__":
    sys.exit(main())
