"""Large sets of images of a diffusion transformer, for scores: made by any number of processes, killed and continued.

python -m dit.generate --num-images 2000 --schedule router.json --out sets/router
python -m dit.generate --num-images 2000 --cache-interval 1 --out sets/baseline     without a cache
accelerate launch -m dit.generate --model facebook/DiT-XL-2-256 --num-images 50000 --out sets/xl2

Runs are resumable: rerun the same command. The result is samples.npz, with labels, which eval.fid scores.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.command_line import Parser, run_cli
from common.environment import versions
from image_sets.batches import Batch, digest
from image_sets.generate import Run, device_of_process, make_set
from image_sets.sets import ImageSet
from ldm.sample import labels_of
from unets.cache.config import CacheConfig

from .cache_options import add_cache_arguments, cache_config
from .config import LayerCacheConfig
from .options import add_model_arguments, open_maker


def parser() -> Parser:
    p = Parser(prog="python -m dit.generate", description=__doc__)
    add_model_arguments(p, steps=50, num_images=64)
    add_cache_arguments(p)
    p.add_argument("--png", action="store_true", help="write every image as a PNG too")
    p.add_argument("--out", type=Path, metavar="DIR", help="(default: outputs/<settings>)")
    return p


def prepare(args: argparse.Namespace, cache: LayerCacheConfig) -> Run:
    """The set that the arguments ask for, its model loaded. Raises ValueError naming the argument that is wrong."""
    maker = open_maker(args)
    cache.table(maker.num_calls, maker.depth)
    pipe, made_from = maker.pipe, dict(maker.made_from)
    del made_from["batch_size"], made_from["model"]
    weights = {part: digest(getattr(pipe, part)) for part in ("transformer", "vae")}
    recorded = {**made_from, "weights": weights, "dtype": str(pipe.transformer.dtype), **cache.to_json()}
    pipe.to(device_of_process(pipe.device))

    def labels(indices: Sequence[int]) -> np.ndarray:
        return labels_of(indices, maker.labels, pipe.num_classes, maker.seed)

    def make(batch: Batch, _: CacheConfig) -> Tensor:
        (images,) = pipe(
            labels(batch.indices).tolist(),
            guidance_scale=maker.guidance_scale,
            generator=batch.generators,
            num_inference_steps=maker.steps,
            output_type="np",
            return_dict=False,
            cache=cache,
        )
        return torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1

    model = "tiny" if args.tiny else Path(args.model or "shapes-dit").name
    folder = Path("outputs") / f"{model}-{args.steps}-{cache.name()}-g{maker.guidance_scale:g}-seed{args.seed}"
    image_set = ImageSet(args.out or folder, recorded, versions(pipe.device))
    return Run(image_set, pipe.transformer, CacheConfig(), make, maker.seed, labels)


def run(args: argparse.Namespace) -> None:
    prepared = prepare(args, cache_config(args))
    made = make_set(prepared, args.num_images, args.batch_size, png=args.png, quiet=args.quiet)
    print(f"{made}; {args.num_images} and their overview in {prepared.image_set.out}")


def main(argv: list[str] | None = None) -> int:
    return run_cli(lambda: run(parser().parse_args(argv)), resumable=True)


if __name__ == "__main__":
    sys.exit(main())
