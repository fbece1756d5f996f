"""The share of the shipped model's pictures that match their captions, by the shipped image-text encoder.

    python -m shapes.prompt_agreement --count 500

Captions are held out and have two things each. A picture has an attribute right if for neither thing the encoder puts
another value of it closer to the picture than the caption's; it resists a hard negative if the caption is closer. The
same is measured for new renders of the captions: the best that the encoder can tell.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image
from tqdm import tqdm

from common import numbers
from common.command_line import Parser, run_cli
from common.files import atomic_write, check_can_be_written, write_json
from common.images import side_by_side
from common.shipped import SHAPES_CLIP, SHAPES_SD
from pipelines import StableDiffusionPipeline
from pipelines.loading import load_pipeline

from .scenes import Scene, alternatives, hard_negatives, random_scene, render


class CaptionClassifier:
    """Decides with the image-text encoder which caption fits a picture."""

    def __init__(self, folder: Path) -> None:
        name = f"local-dir:{folder}"
        self.model, self.transform = open_clip.create_model_from_pretrained(name)
        self.model.eval()
        self.tokenizer = open_clip.get_tokenizer(name)

    @torch.no_grad()
    def similarity(self, image: Image.Image, captions: list[str]) -> torch.Tensor:
        """Cosine similarity of the image to each caption (N,)."""
        picture = self.model.encode_image(self.transform(image)[None], normalize=True)  # (1, 128)
        texts = self.model.encode_text(self.tokenizer(captions), normalize=True)  # (N, 128)
        return (texts @ picture.T)[:, 0]

    def verdicts(self, image: Image.Image, scene: Scene) -> dict[str, bool]:
        """For each hard negative and each attribute, whether the scene's own caption is the closest."""
        others = {name: [wrong] for name, wrong in hard_negatives(scene).items()} | alternatives(scene)
        captions = [scene.caption] + [wrong.caption for wrongs in others.values() for wrong in wrongs]
        own, *rest = self.similarity(image, captions).tolist()
        scores = iter(rest)
        return {name: all([own > next(scores) for _ in wrongs]) for name, wrongs in others.items()}


def summary(verdicts: list[dict[str, bool]]) -> dict[str, float]:
    """Shares of pictures; `hard negatives` is the mean over the three kinds."""
    shares = {name: float(np.mean([v[name] for v in verdicts])) for name in verdicts[0]}
    negatives = ("colours swapped", "shapes swapped", "relation reversed")
    return {"hard negatives": float(np.mean([shares[name] for name in negatives])), **shares}


def parser() -> Parser:
    p = Parser(prog="python -m shapes.prompt_agreement", description=__doc__)
    p.add_argument("--model", type=Path, default=SHAPES_SD)
    p.add_argument("--encoder", type=Path, default=SHAPES_CLIP)
    p.add_argument("--count", type=numbers.images, default=500, help="captions")
    p.add_argument("--batch", type=numbers.batch, default=50)
    p.add_argument("--steps", type=numbers.steps, default=50)
    p.add_argument("--guidance-scale", type=numbers.guidance, default=2.5)
    p.add_argument("--cache-interval", type=numbers.interval, default=1)
    p.add_argument("--cache-branch-id", type=numbers.branch, default=1)
    p.add_argument("--seed", type=numbers.seed, default=0)
    p.add_argument("--out", type=Path, help="write the shares to this JSON file")
    p.add_argument("--grid", type=Path, help="write the first 32 pictures to this PNG")
    return p


def run(args: argparse.Namespace) -> None:
    check_can_be_written(args.out, args.grid)
    rng = np.random.default_rng((11, args.seed))
    scenes = [random_scene(rng, held_out=True, things=2) for _ in range(args.count)]
    classifier = CaptionClassifier(args.encoder)
    rendered = [
        classifier.verdicts(Image.fromarray(render(scene, rng)[0]), scene)
        for scene in tqdm(scenes, desc="renders", disable=None)
    ]

    pipe = load_pipeline(StableDiffusionPipeline, args.model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    images: list[Image.Image] = []
    for start in tqdm(range(0, args.count, args.batch), desc="pictures", disable=None):
        part = scenes[start : start + args.batch]
        images += pipe(
            [scene.caption for scene in part],
            num_inference_steps=args.steps,
            guidance_scale=args.guidance_scale,
            generator=[torch.Generator().manual_seed(args.seed + start + k) for k in range(len(part))],
            cache_interval=args.cache_interval,
            cache_branch_id=args.cache_branch_id,
        ).images
    generated = [classifier.verdicts(image, scene) for image, scene in zip(images, scenes, strict=True)]

    result = {"count": args.count, "renders": summary(rendered), "pictures": summary(generated)}
    for name, share in result["pictures"].items():
        print(f"{name:<20} pictures {share:.3f}   renders {result['renders'][name]:.3f}")
    if args.out:
        write_json(args.out, result)
    if args.grid:
        shown = images[: min(32, len(images) // 8 * 8)] or images
        with atomic_write(args.grid) as tmp_path:
            side_by_side([shown[k : k + 8] for k in range(0, len(shown), 8)]).save(tmp_path, "png")
        print("\n".join(scene.caption for scene in scenes[: len(shown)]))


def main(argv: list[str] | None = None) -> int:
    return run_cli(lambda: run(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
