"""Trains the shipped diffusion transformer, `assets/shapes-dit`, on the latents of the shipped LDM's first stage.

    python -m shapes.train_dit --work build/shapes-dit

Two stages: latents of the training pictures, transformer. Each leaves its checkpoint and log in the work folder and is
continued, or skipped when done, if the command is given again. The layout is DiT's (Peebles and Xie 2023, adaLN-Zero,
patches of 2 × 2) made narrow; classes, noise and prediction (ε) are those of `shapes.train_ldm`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTPipeline, Transformer2DModel
from torch import nn

from common import numbers
from common.command_line import Parser, run_cli
from common.files import check_can_be_made
from common.safe_load import read_checkpoint
from common.shipped import SHAPES_DIT, SHAPES_LDM
from ldm.checkpoint import load_pipeline, new_scheduler

from .train_ldm import CLASSES, HELD_OUT, encode_pictures, train_noise
from .training import export_to, save_tensors


def new_transformer() -> Transformer2DModel:
    """The transformer with random weights, each block of which begins as the identity (adaLN-Zero)."""
    transformer = Transformer2DModel(
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=3,
        out_channels=3,
        num_layers=12,
        attention_bias=True,
        sample_size=16,
        patch_size=2,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=len(CLASSES),
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    )
    zero = [block.norm1.linear for block in transformer.transformer_blocks]
    for linear in [*zero, transformer.proj_out_1, transformer.proj_out_2]:
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    for block in transformer.transformer_blocks:
        nn.init.normal_(block.norm1.emb.class_embedder.embedding_table.weight, std=0.02)
        # In diffusers every block has a table of classes and would leave out another one; the loss does it for all.
        block.norm1.emb.class_embedder.dropout_prob = 0.0
    return transformer


def train_transformer(data: dict, fixed: dict, scale: float, work: Path, steps: int, batch: int) -> Any:
    """Stage 2. Predicts the noise ε; one class in ten is left out, for classifier-free guidance."""
    torch.manual_seed(0)
    transformer = new_transformer()

    def predict(model: Any, noisy: torch.Tensor, timesteps: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return model(noisy, timestep=timesteps, class_labels=labels).sample

    return train_noise("transformer", transformer, predict, data, fixed, scale, work, steps, batch)


def parser() -> Parser:
    p = Parser(prog="python -m shapes.train_dit", description=__doc__)
    p.add_argument("--work", type=Path, default=Path("build/shapes-dit"), help="checkpoints and logs")
    p.add_argument("--out", type=Path, default=SHAPES_DIT, help="the pipeline")
    p.add_argument("--steps", type=numbers.whole(1, 1_000_000), default=5000)
    p.add_argument("--batch", type=numbers.batch, default=32)
    p.add_argument("--pictures", type=numbers.images, default=20480, help="pictures rendered and encoded")
    p.add_argument("--threads", type=numbers.whole(1, 1024), default=1)
    return p


def run(args: argparse.Namespace) -> None:
    check_can_be_made(args.out)
    torch.set_num_threads(args.threads)

    first_stage = load_pipeline(SHAPES_LDM).vqvae
    first_stage.register_to_config(_name_or_path="shapes-ldm")  # instead of where it is on this machine
    encoded = args.work / f"latents-{args.pictures}.pt"
    if not encoded.exists():
        args.work.mkdir(parents=True, exist_ok=True)
        save_tensors(
            [encode_pictures(first_stage, n, held) for n, held in ((args.pictures, False), (HELD_OUT, True))], encoded
        )
    data, fixed = read_checkpoint(encoded, remedy="remove it to have it made again")
    scale = first_stage.config.scaling_factor
    transformer = train_transformer(data, fixed, scale, args.work, args.steps, args.batch)
    pipeline = DiTPipeline(transformer, first_stage, new_scheduler())
    pipeline.register_to_config(id2label={str(k): name for k, name in enumerate(CLASSES)})
    with export_to(args.out, args.work, "transformer") as tmp_dir:
        pipeline.to(torch.float16).save_pretrained(tmp_dir, safe_serialization=True)


def main(argv: list[str] | None = None) -> int:
    return run_cli(lambda: run(parser().parse_args(argv)), resumable=True)


if __name__ == "__main__":
    sys.exit(main())
