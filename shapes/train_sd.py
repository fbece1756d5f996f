"""Trains the shipped text-to-image pipeline, `assets/shapes-sd`, from nothing but the renderer beside this file.

    python -m shapes.train_sd --work build/shapes-sd

Four stages: autoencoder, latents of the training pictures, text encoder, U-Net with text encoder. Each leaves its
checkpoint and log in the work folder; rerun the same command to resume. The layout is a narrow version of Stable
Diffusion 1.5's: four levels each, two layers per block, hence twelve skip branches, latents an eighth of the
picture's height and width.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from common import numbers
from common.command_line import Parser, run_cli
from common.files import check_can_be_made
from common.safe_load import read_checkpoint
from common.shipped import SHAPES_SD

from .scenes import SIZE, Scene, attributes, random_scene, render, words
from .tokenizer import make_tokenizer
from .training import attribute_head, attribute_loss, export_to, save_tensors, train

HELD_OUT = 512


def batch_of_pictures(
    size: int, *seed: int, held_out: bool = False, things: int | None = None
) -> tuple[torch.Tensor, torch.Tensor, list[Scene]]:
    """`size` pictures (B, 3, 64, 64) in [-1, 1], the share of each pixel covered (B, 1, 64, 64), and their scenes."""
    rng = np.random.default_rng((*seed, int(held_out)))
    scenes = [random_scene(rng, held_out, things) for _ in range(size)]
    drawn = [render(scene, rng) for scene in scenes]
    pictures = torch.from_numpy(np.stack([d[0] for d in drawn])).permute(0, 3, 1, 2).float() / 127.5 - 1
    covered = torch.from_numpy(np.stack([d[1] for d in drawn]))[:, None]
    return pictures, covered, scenes


def train_autoencoder(work: Path, steps: int, batch: int) -> Any:
    """Stage 1. Pixels of shapes weigh five times as much as those of the background, which fills most of a picture."""
    torch.manual_seed(0)
    autoencoder = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,  # with many groups, flat colours would be normalised away
        sample_size=SIZE,
    )
    fixed = batch_of_pictures(64, 1, held_out=True)

    def loss_of(step: int) -> torch.Tensor:
        pictures, covered, _ = batch_of_pictures(batch, 0, step)
        posterior = autoencoder.encode(pictures).latent_dist
        noise = torch.Generator().manual_seed(step)
        difference = autoencoder.decode(posterior.sample(noise)).sample - pictures
        weighted = (1 + 4 * covered) * (difference.abs() + 4 * difference**2)
        return weighted.mean() + 2e-4 * posterior.kl().mean() / posterior.mean[0].numel()

    @torch.no_grad()
    def held_out(average: Any) -> dict[str, float]:
        pictures, covered, _ = fixed
        mean = average.encode(pictures).latent_dist.mean
        squared = (average.decode(mean).sample.clamp(-1, 1) - pictures) ** 2 / 4
        inside = (squared * covered).sum() / (3 * covered.sum())
        spread = mean.std(dim=(0, 2, 3))
        return {
            "psnr": -10 * squared.mean().log10().item(),
            "psnr_shapes": -10 * inside.log10().item(),
            **{f"spread_{k}": value.item() for k, value in enumerate(spread)},
        }

    return train("autoencoder", autoencoder, loss_of, steps=steps, learning_rate=2e-3, work=work, held_out=held_out)


@torch.no_grad()
def encode_pictures(autoencoder: AutoencoderKL, tokenizer: CLIPTokenizer, count: int, held_out: bool) -> dict:
    """Stage 2. Posterior means and spreads (count, 4, 8, 8), covered shares (count, 1, 8, 8), token ids (count, 24).

    Also what is on each side of the picture (count, 4, 3), see `attributes`.
    """
    parts = []
    for start in tqdm(range(0, count, 64), desc="latents", mininterval=5, disable=None):
        pictures, covered, scenes = batch_of_pictures(64, 2, start, held_out=held_out)
        posterior = autoencoder.encode(pictures).latent_dist
        captions = [scene.caption for scene in scenes]
        tokens = tokenizer(captions, padding="max_length", return_tensors="pt").input_ids
        sides = torch.from_numpy(np.stack([attributes(scene) for scene in scenes]))
        shares = F.avg_pool2d(covered, 8)
        parts.append((posterior.mean.half(), posterior.std.half(), shares.half(), tokens.short(), sides.byte()))
    names = ("mean", "std", "covered", "tokens", "sides")
    return {name: torch.cat(column) for name, column in zip(names, zip(*parts, strict=True), strict=True)}


def new_unet_and_text_encoder(tokenizer: CLIPTokenizer) -> nn.ModuleDict:
    """The two models of stages 3 and 4 with random weights, and a head that is only used in training."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=SIZE // 8,
        block_out_channels=(64, 64, 80, 80),
        layers_per_block=2,
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    text_config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=128,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    text = CLIPTextModel(text_config)
    head = nn.Linear(128, 4 + attribute_head(128).out_features)
    return nn.ModuleDict({"unet": unet.to(memory_format=torch.channels_last), "text": text, "head": head})


def sides_loss(head: Any, context: torch.Tensor, sides: torch.Tensor) -> torch.Tensor:
    """The loss of predicting from the last four tokens (B, 24, 128) which side each stands for and its sides (B, 4, 3).

    The first matters as much: the U-Net finds a token by what identifies it.
    """
    which, what = head(context[:, -4:]).tensor_split([4], dim=-1)  # (B, 4, 4), (B, 4, 18)
    own = torch.arange(4).repeat(len(context))
    return F.cross_entropy(which.flatten(0, 1), own) + attribute_loss(what, sides)


def train_text_encoder(models: nn.ModuleDict, tokenizer: CLIPTokenizer, work: Path, steps: int) -> None:
    """Stage 3. The caption's last four tokens, padding in every caption, learn to stand for the picture's four sides.

    With the U-Net's loss alone this takes hours, since that loss hardly depends on the order of two things.
    """
    models = nn.ModuleDict({name: models[name] for name in ("text", "head")})

    def sides_loss_of(models: Any, size: int, *seed: int, held_out: bool = False) -> torch.Tensor:
        rng = np.random.default_rng((3, *seed, int(held_out)))
        scenes = [random_scene(rng, held_out) for _ in range(size)]
        captions = [scene.caption for scene in scenes]
        tokens = tokenizer(captions, padding="max_length", return_tensors="pt").input_ids
        sides = torch.from_numpy(np.stack([attributes(scene) for scene in scenes]))
        return sides_loss(models["head"], models["text"](tokens).last_hidden_state, sides)

    @torch.no_grad()
    def held_out(average: Any) -> dict[str, float]:
        return {"sides": sides_loss_of(average, HELD_OUT, 1, held_out=True).item()}

    average = train(
        "text", models, lambda step: sides_loss_of(models, 64, 0, step), steps=steps, learning_rate=1e-3, work=work,
        held_out=held_out, ema_decay=0.98,
    )  # fmt: skip
    models.load_state_dict(average.state_dict())


def new_scheduler() -> PNDMScheduler:
    """Stable Diffusion's: PLMS over scaled-linear betas, predicting the velocity as Stable Diffusion 2.1 does.

    The first few steps of a run decide where things are, and there a prediction of the noise hardly depends on it.
    """
    return PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        set_alpha_to_one=False,
        skip_prk_steps=True,
        steps_offset=1,
        prediction_type="v_prediction",
    )


def train_unet(
    models: nn.ModuleDict, data: dict, fixed: dict, scale: float, tokenizer: CLIPTokenizer, work: Path, steps: int
) -> Any:
    """Stage 4. Predicts the velocity √ᾱ ε − √(1−ᾱ) z (Salimans and Ho 2022); one caption in ten left empty.

    This weights the squared error of the latents by 1 + snr, capped at 6. Latent cells weigh one to three times as
    much by the share that shapes cover, since most cells are background. The text encoder keeps predicting the sides,
    and half of the pictures are denoised with only the tokens of the sides: from the words alone the U-Net soon learns
    what is in the picture and along which axis, but takes hours to learn what is where.
    """
    alphas = new_scheduler().alphas_cumprod
    empty = tokenizer("", padding="max_length", return_tensors="pt").input_ids[0]
    sides_only = torch.zeros(24, 1)
    sides_only[-4:] = 1

    def loss(models: Any, data: dict, rows: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        mean, std = data["mean"][rows].float(), data["std"][rows].float()
        latents = scale * (mean + std * torch.randn(mean.shape, generator=generator))  # (B, 4, 8, 8)
        timesteps = torch.randint(0, len(alphas), (len(rows),), generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        alpha = alphas[timesteps][:, None, None, None]
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        dropped = torch.rand(len(rows), 1, generator=generator) < 0.1
        tokens = torch.where(dropped, empty, data["tokens"][rows].long())
        context = models["text"](tokens).last_hidden_state  # (B, 24, 128)
        words_hidden = torch.rand(len(rows), 1, 1, generator=generator) < 0.5
        predicted = models["unet"](noisy, timesteps, torch.where(words_hidden, context * sides_only, context)).sample
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        weight = (6 * (1 - alpha)).clamp(max=1) * (1 + 2 * data["covered"][rows].float())
        said = ~dropped[:, 0]
        from_tokens = sides_loss(models["head"], context[said], data["sides"][rows][said].long())
        return (weight * (predicted - velocity) ** 2).mean(), from_tokens

    def loss_of(step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(step)
        rows = torch.randint(0, len(data["mean"]), (32,), generator=generator)
        denoised, sides = loss(models, data, rows, generator)
        return denoised + 0.1 * sides

    @torch.no_grad()
    def held_out(average: Any) -> dict[str, float]:
        generator = torch.Generator().manual_seed(2**40)
        denoised, sides = loss(average, fixed, torch.arange(HELD_OUT), generator)
        return {"held_out": denoised.item(), "sides": sides.item()}

    return train("unet", models, loss_of, steps=steps, learning_rate=1e-3, work=work, held_out=held_out)


def export(autoencoder: AutoencoderKL, models: nn.ModuleDict, tokenizer: CLIPTokenizer, work: Path, out: Path) -> None:
    """Writes the pipeline as a diffusers directory, weights in float16, with the logs of the training."""
    pipeline = StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=models["text"],
        tokenizer=tokenizer,
        unet=models["unet"].to(memory_format=torch.contiguous_format),
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    with export_to(out, work, "autoencoder", "text", "unet") as tmp_dir:
        pipeline.to(torch.float16).save_pretrained(tmp_dir, safe_serialization=True)


def parser() -> Parser:
    p = Parser(prog="python -m shapes.train_sd", description=__doc__)
    p.add_argument("--work", type=Path, default=Path("build/shapes-sd"), help="checkpoints and logs")
    p.add_argument("--out", type=Path, default=SHAPES_SD, help="the pipeline")
    p.add_argument("--autoencoder-steps", type=numbers.whole(1, 1_000_000), default=2400)
    p.add_argument("--text-steps", type=numbers.whole(1, 1_000_000), default=500)
    p.add_argument("--unet-steps", type=numbers.whole(1, 1_000_000), default=7500)
    p.add_argument("--pictures", type=numbers.images, default=49152, help="pictures rendered and encoded for the U-Net")
    p.add_argument("--threads", type=numbers.whole(1, 1024), default=2)
    return p


def run(args: argparse.Namespace) -> None:
    check_can_be_made(args.out)
    torch.set_num_threads(args.threads)

    tokenizer = make_tokenizer(words(), max_length=24)
    autoencoder = train_autoencoder(args.work, args.autoencoder_steps, batch=16)
    encoded = args.work / f"latents-{args.autoencoder_steps}-{args.pictures}.pt"
    if not encoded.exists():
        parts = [
            encode_pictures(autoencoder, tokenizer, n, held) for n, held in ((args.pictures, False), (HELD_OUT, True))
        ]
        save_tensors(parts, encoded)
    data, fixed = read_checkpoint(encoded, remedy="remove it to have it made again")
    scale = 1 / data["mean"].float().std().item()
    autoencoder.register_to_config(scaling_factor=round(scale, 5))
    models = new_unet_and_text_encoder(tokenizer)
    train_text_encoder(models, tokenizer, args.work, args.text_steps)
    scale = autoencoder.config.scaling_factor
    models = train_unet(models, data, fixed, scale, tokenizer, args.work, args.unet_steps)
    export(autoencoder, models, tokenizer, args.work, args.out)


def main(argv: list[str] | None = None) -> int:
    return run_cli(lambda: run(parser().parse_args(argv)), resumable=True)


if __name__ == "__main__":
    sys.exit(main())
