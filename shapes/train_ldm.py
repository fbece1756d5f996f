"""Trains the shipped class-conditional model, `assets/shapes-ldm`, from nothing but the renderer beside this file.

    python -m shapes.train_ldm --work build/shapes-ldm

Three stages: first stage (VQ, a quarter of the picture's height and width), latents of the training pictures, U-Net
with class embedder. Each leaves its checkpoint and log in the work folder; rerun the same command to resume. The
layout is a narrow version of LDM-4-G's. A picture shows one thing; its class is the thing's shape and colour, one of
40, and class 40 is the unconditional one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel, VQModel
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from common import numbers
from common.command_line import Parser, run_cli
from common.files import check_can_be_made
from common.safe_load import read_checkpoint
from common.shipped import SHAPES_LDM
from ldm.checkpoint import new_scheduler
from pipelines.ldm_class import LDMClassPipeline
from unets.class_embedder import ClassEmbedder

from .scenes import COLOURS, SHAPES, SIZE, Scene
from .train_sd import batch_of_pictures
from .training import export_to, save_tensors, train

HELD_OUT = 512
CLASSES = [f"{colour} {shape}" for shape in SHAPES for colour in COLOURS]
CODES_FROM = 200  # step of stage 1 at which quantisation of the latents starts


def class_of(scene: Scene) -> int:
    """The class of a scene's only thing, an index into `CLASSES`."""
    (thing,) = scene.things
    return CLASSES.index(f"{thing.colour} {thing.shape}")


def train_first_stage(work: Path, steps: int, batch: int) -> Any:
    """Stage 1. Pixels of shapes weigh five times as much as those of the background, which fills most of a picture.

    The codes are set to latents of pictures once the encoder has found its range; otherwise most are never used.
    """
    torch.manual_seed(0)
    first_stage = VQModel(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=3,
        sample_size=SIZE,
        num_vq_embeddings=1024,
        norm_num_groups=4,
    )
    fixed = batch_of_pictures(64, 1, held_out=True, things=1)

    def loss_of(step: int) -> torch.Tensor:
        pictures, covered, _ = batch_of_pictures(batch, 10, step, things=1)
        latents = first_stage.encode(pictures).latents  # (B, 3, 16, 16)
        if step == CODES_FROM:
            with torch.no_grad():
                many = torch.cat(
                    [first_stage.encode(batch_of_pictures(16, 11, k, things=1)[0]).latents for k in range(4)]
                )
                places = torch.randperm(many.numel() // 3, generator=torch.Generator().manual_seed(0))[:1024]
                first_stage.quantize.embedding.weight.copy_(many.movedim(1, -1).reshape(-1, 3)[places])
        if step < CODES_FROM:
            restored, codes = (
                first_stage.decode(latents, force_not_quantize=True).sample,
                latents.square().mean() * 1e-2,
            )
        else:
            quantised, codes, _ = first_stage.quantize(latents)
            restored = first_stage.decode(quantised, force_not_quantize=True).sample
        difference = restored - pictures
        return ((1 + 4 * covered) * (difference.abs() + 4 * difference**2)).mean() + 0.25 * codes

    @torch.no_grad()
    def held_out(average: Any) -> dict[str, float]:
        pictures, covered, _ = fixed
        latents = average.encode(pictures).latents
        squared = (average.decode(latents).sample.clamp(-1, 1) - pictures) ** 2 / 4
        inside = (squared * covered).sum() / (3 * covered.sum())
        used = average.quantize(latents)[2][2].unique().numel()
        return {
            "psnr": -10 * squared.mean().log10().item(),
            "psnr_shapes": -10 * inside.log10().item(),
            "codes_used": used,
            "spread": latents.std().item(),
        }

    return train("first_stage", first_stage, loss_of, steps=steps, learning_rate=2e-3, work=work, held_out=held_out)


@torch.no_grad()
def encode_pictures(first_stage: VQModel, count: int, held_out: bool) -> dict[str, torch.Tensor]:
    """Stage 2. Latents before quantisation (count, 3, 16, 16), and classes (count,)."""
    parts = []
    for start in tqdm(range(0, count, 64), desc="latents", mininterval=5, disable=None):
        pictures, _, scenes = batch_of_pictures(64, 12, start, held_out=held_out, things=1)
        parts.append((first_stage.encode(pictures).latents.half(), torch.tensor([class_of(s) for s in scenes])))
    latents, classes = zip(*parts, strict=True)
    return {"latents": torch.cat(latents), "classes": torch.cat(classes)}


def new_unet() -> UNet2DConditionModel:
    """The U-Net with random weights."""
    return UNet2DConditionModel(
        sample_size=SIZE // 4,
        in_channels=3,
        out_channels=3,
        block_out_channels=(24, 48, 72, 96),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=1,
        cross_attention_dim=64,
        norm_num_groups=8,
    )


def train_unet(data: dict, fixed: dict, scale: float, work: Path, steps: int, batch: int) -> Any:
    """Stage 3. Predicts the noise ε; one class in ten is dropped, for classifier-free guidance."""
    torch.manual_seed(0)
    models = nn.ModuleDict(
        {
            "unet": new_unet().to(memory_format=torch.channels_last),
            "class_embedder": ClassEmbedder(num_classes=len(CLASSES) + 1, embedding_dim=64),
        }
    )

    def predict(models: Any, noisy: torch.Tensor, timesteps: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return models["unet"](noisy, timesteps, models["class_embedder"](labels)).sample  # the context: (B, 1, 64)

    return train_noise("unet", models, predict, data, fixed, scale, work, steps, batch)


def train_noise(
    name: str,
    model: Any,
    predict: Callable[[Any, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    data: dict,
    fixed: dict,
    scale: float,
    work: Path,
    steps: int,
    batch: int,
) -> Any:
    """Trains a model to predict the noise ε of latents, one class in ten dropped for classifier-free guidance.

    Args:
        predict: the noise (B, 3, 16, 16), given the model, noisy latents of that shape, timesteps and labels (B,) each.
        data, fixed: `encode_pictures`'s, to train on and held out.
        scale: of the latents.

    Returns:
        The moving average, as `shapes.training.train`.
    """
    alphas = new_scheduler().alphas_cumprod

    def loss(model: Any, data: dict, rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        latents = scale * data["latents"][rows].float()  # (B, 3, 16, 16)
        timesteps = torch.randint(0, len(alphas), (len(rows),), generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        alpha = alphas[timesteps][:, None, None, None]
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        dropped = torch.rand(len(rows), generator=generator) < 0.1
        labels = torch.where(dropped, len(CLASSES), data["classes"][rows])
        return F.mse_loss(predict(model, noisy, timesteps, labels), noise)

    def loss_of(step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(step)
        rows = torch.randint(0, len(data["latents"]), (batch,), generator=generator)
        return loss(model, data, rows, generator)

    @torch.no_grad()
    def held_out(average: Any) -> dict[str, float]:
        generator = torch.Generator().manual_seed(2**40)
        return {"held_out": loss(average, fixed, torch.arange(HELD_OUT), generator).item()}

    return train(name, model, loss_of, steps=steps, learning_rate=1e-3, work=work, held_out=held_out)


def parser() -> Parser:
    p = Parser(prog="python -m shapes.train_ldm", description=__doc__)
    p.add_argument("--work", type=Path, default=Path("build/shapes-ldm"), help="checkpoints and logs")
    p.add_argument("--out", type=Path, default=SHAPES_LDM, help="the pipeline")
    p.add_argument("--first-stage-steps", type=numbers.whole(1, 1_000_000), default=1600)
    p.add_argument("--unet-steps", type=numbers.whole(1, 1_000_000), default=6000)
    p.add_argument("--batch", type=numbers.batch, default=32, help="batch size for the U-Net")
    p.add_argument("--pictures", type=numbers.images, default=20480, help="pictures rendered and encoded for the U-Net")
    p.add_argument("--threads", type=numbers.whole(1, 1024), default=2)
    return p


def run(args: argparse.Namespace) -> None:
    check_can_be_made(args.out)
    torch.set_num_threads(args.threads)

    first_stage = train_first_stage(args.work, args.first_stage_steps, batch=12)
    encoded = args.work / f"latents-{args.first_stage_steps}-{args.pictures}.pt"
    if not encoded.exists():
        parts = [encode_pictures(first_stage, n, held) for n, held in ((args.pictures, False), (HELD_OUT, True))]
        save_tensors(parts, encoded)
    data, fixed = read_checkpoint(encoded, remedy="remove it to have it made again")
    scale = round(1 / data["latents"].float().std().item(), 5)
    first_stage.register_to_config(scaling_factor=scale)
    models = train_unet(data, fixed, scale, args.work, args.unet_steps, args.batch)
    pipeline = LDMClassPipeline(
        vqvae=first_stage,
        class_embedder=models["class_embedder"],
        unet=models["unet"].to(memory_format=torch.contiguous_format),
        scheduler=new_scheduler(),
    )
    with export_to(args.out, args.work, "first_stage", "unet") as tmp_dir:
        pipeline.to(torch.float16).save_pretrained(tmp_dir, safe_serialization=True)


def main(argv: list[str] | None = None) -> int:
    return run_cli(lambda: run(parser().parse_args(argv)), resumable=True)


if __name__ == "__main__":
    sys.exit(main())
