"""Trains the shipped image-text encoder, `assets/shapes-clip`, which tells whether a picture shows its caption.

    python -m shapes.train_clip --work build/shapes-clip

A small CLIP in open_clip's own format, trained independently of the text-to-image model on the same kind of pictures.
Each picture is contrasted with the other captions of its batch and with near misses: one attribute changed, or two
swapped. Runs are resumable: rerun the same command.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torchvision.transforms.functional import normalize

from common import numbers
from common.command_line import Parser, run_cli
from common.files import check_can_be_made, write_json
from common.shipped import SHAPES_CLIP

from .scenes import SIZE, Scene, alternatives, attributes, hard_negatives, random_scene, render, words
from .tokenizer import make_tokenizer
from .training import attribute_head, attribute_loss, export_to, train

CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 128,
        "vision_cfg": {"image_size": SIZE, "layers": [1, 2, 2, 1], "width": 24, "head_width": 64},
        "text_cfg": {
            "context_length": 24,
            "vocab_size": 0,  # the tokenizer's length
            "hf_tokenizer_name": "shapes-clip",  # not a hub id: open_clip reads the tokenizer beside the configuration
            "width": 128,
            "heads": 4,
            "layers": 3,
        },
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bicubic"},
}
NEGATIVES = 5  # per picture, besides the other captions of the batch


def near_misses(scene: Scene, rng: np.random.Generator) -> list[str]:
    """`NEGATIVES` captions that resemble the scene's but are false of its pictures.

    Always the swaps, and another shape: these are learned last, the reversed relation above all.
    """
    candidates = {kind: others[rng.integers(len(others))] for kind, others in alternatives(scene).items()}
    drawn = [candidates.pop("shape"), *(list(candidates.values())[k] for k in rng.permutation(len(candidates)))]
    if len(scene.things) == 2:
        drawn = [*hard_negatives(scene).values(), *drawn]
    return [wrong.caption for wrong in drawn[:NEGATIVES]]


def augment(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Blur and noise of random strength, so that the encoder also knows the softer edges of generated pictures."""
    count = len(pictures)
    blurred = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    share = torch.rand(count, 1, 1, 1, generator=generator)
    noise = 0.05 * torch.rand(count, 1, 1, 1, generator=generator) * torch.randn(pictures.shape, generator=generator)
    return (pictures.lerp(blurred, share) + noise).clamp(0, 1)


def parser() -> Parser:
    p = Parser(prog="python -m shapes.train_clip", description=__doc__)
    p.add_argument("--work", type=Path, default=Path("build/shapes-clip"), help="checkpoint and log")
    p.add_argument("--out", type=Path, default=SHAPES_CLIP, help="the encoder")
    p.add_argument("--steps", type=numbers.whole(1, 1_000_000), default=5000)
    p.add_argument("--batch", type=numbers.batch, default=96)
    p.add_argument("--threads", type=numbers.whole(1, 1024), default=2)
    return p


def run(args: argparse.Namespace) -> None:
    check_can_be_made(args.out)
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)

    tokenizer = make_tokenizer(words(), CONFIG["model_cfg"]["text_cfg"]["context_length"])
    CONFIG["model_cfg"]["text_cfg"]["vocab_size"] = len(tokenizer)
    text_cfg = {k: v for k, v in CONFIG["model_cfg"]["text_cfg"].items() if k != "hf_tokenizer_name"}
    encoder = open_clip.CLIP(**{**CONFIG["model_cfg"], "text_cfg": text_cfg})
    # Only in training: both kinds of features have to predict what is on each side of the picture.
    encoder.heads = nn.ModuleList([attribute_head(CONFIG["model_cfg"]["embed_dim"]) for _ in range(4)])

    def batch(size: int, *seed: int, held_out: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Pictures (B, 3, 64, 64) normalised, token ids (B + 5B, 24), true captions first, and sides (B, 4, 3)."""
        rng = np.random.default_rng((7, *seed, int(held_out)))
        scenes = [random_scene(rng, held_out) for _ in range(size)]
        drawn = np.stack([render(scene, rng)[0] for scene in scenes])
        pictures = torch.from_numpy(drawn).permute(0, 3, 1, 2).float() / 255
        if not held_out:
            pictures = augment(pictures, torch.Generator().manual_seed(seed[-1]))
        captions = [scene.caption for scene in scenes]
        captions += [caption for scene in scenes for caption in near_misses(scene, rng)]
        tokens = tokenizer(captions, padding="max_length", return_tensors="pt").input_ids
        pictures = normalize(pictures, **{k: CONFIG["preprocess_cfg"][k] for k in ("mean", "std")})
        return pictures, tokens, torch.from_numpy(np.stack([attributes(scene) for scene in scenes]))

    def similarities(
        model: Any, pictures: torch.Tensor, tokens: torch.Tensor, sides: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits of every picture against every true caption (B, B), and against its own near misses (B, NEGATIVES).

        Also the loss of predicting the sides from the features.
        """
        images, texts, scale = model(pictures, tokens)
        features = torch.cat([images, texts[: len(pictures)]]) * 10  # at unit length scores can't be sharp
        scores = torch.stack([head(features) for head in model.heads], 1)  # (2B, 4, 18)
        sides_loss = attribute_loss(scores, sides.repeat(2, 1, 1))
        near = texts[len(pictures) :].view(len(pictures), NEGATIVES, -1)
        return scale * images @ texts[: len(pictures)].T, scale * (near @ images[:, :, None])[..., 0], sides_loss

    def loss_of(step: int) -> torch.Tensor:
        logits, near, sides_loss = similarities(encoder, *batch(args.batch, 0, step))
        truth = torch.arange(len(logits))
        with torch.no_grad():
            encoder.logit_scale.clamp_(max=np.log(100))
        contrast = F.cross_entropy(torch.cat([logits, near], 1), truth) + F.cross_entropy(logits.T, truth)
        return contrast / 2 + sides_loss

    fixed = batch(512, 1, held_out=True)

    @torch.no_grad()
    def held_out(average: nn.Module) -> dict[str, float]:
        # Batch normalisation's running statistics are buffers, which the moving average does not cover.
        for kept, new in zip(average.buffers(), encoder.buffers(), strict=True):
            kept.copy_(new)
        logits, near, sides_loss = similarities(average, *fixed)
        own = logits.diagonal()
        return {
            "near_misses_beaten": (own > near.max(1).values).float().mean().item(),
            "first_of_512": (logits.argmax(1) == torch.arange(512)).float().mean().item(),
            "sides": sides_loss.item(),
        }

    average = train(
        "judge", encoder, loss_of, steps=args.steps, learning_rate=1e-3, weight_decay=0.05, work=args.work,
        held_out=held_out,
    )  # fmt: skip
    del average.heads
    weights = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in average.state_dict().items()}
    with export_to(args.out, args.work, "judge") as tmp_dir:
        save_file(weights, tmp_dir / "open_clip_model.safetensors")
        write_json(tmp_dir / "open_clip_config.json", CONFIG)
        tokenizer.save_pretrained(tmp_dir)


def main(argv: list[str] | None = None) -> int:
    return run_cli(lambda: run(parser().parse_args(argv)), resumable=True)


if __name__ == "__main__":
    sys.exit(main())
