"""Figure 2: the similarity of the deep features of all pairs of steps, in a run with every step full.

python -m eval.similarity                                         the model shipped with this repository
python -m eval.similarity --model stable-diffusion-v1-5/stable-diffusion-v1-5 --branch 1 --out results/figure2

The feature is the one that DeepCache caches: what enters the up layer u_m from below.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common import numbers
from common.command_line import Parser, RunError, add_quiet_argument, run_cli
from common.device import add_device_arguments, resolve_device, resolve_dtype
from common.digests import settings_key
from common.environment import versions
from common.files import check_can_be_made, write_json
from common.folders import atomic_folder
from common.shipped import GUIDANCE, PROMPTS, SHAPES_SD
from common.words import counted
from pipelines import StableDiffusionPipeline
from pipelines.loading import check_steps, load_pipeline

from .metrics.similarity import THRESHOLD, features_of_run, plot, share_above, similarity


def save(out: Path, matrix: Tensor, about: dict[str, object], title: str, device: torch.device) -> None:
    """Writes similarity.npz, similarity.png and, last, similarity.json into the folder `out`."""
    share = share_above(matrix)
    steps = len(matrix)
    neighbours = matrix.diagonal(1)
    summary = {
        "calls_of_the_unet": steps,
        "threshold": THRESHOLD,
        "mean_share_above": float(share.mean()),
        "least_similarity": float(matrix.min()),
        "least_similarity_of_neighbours": float(neighbours.min()) if steps > 1 else None,
        "share_above": share.tolist(),
        "similarity": matrix.tolist(),
    }
    with atomic_folder(out, last="similarity.json") as tmp_dir:
        np.savez_compressed(tmp_dir / "similarity.npz", similarity=matrix.numpy(), share_above=share.numpy())
        plot(matrix.numpy(), share.numpy(), title, tmp_dir / "similarity.png")
        write_json(tmp_dir / "similarity.json", {**about, **summary, "versions": versions(device)})


def parser() -> Parser:
    p = Parser(prog="python -m eval.similarity", description=__doc__)
    p.add_argument("--model", metavar="ID_OR_PATH", help="Stable Diffusion 1.x or 2.x (default: the shipped model)")
    p.add_argument("--prompt", action="append", help="can be repeated (default: examples)")
    p.add_argument("--scheduler", help="as for stable_diffusion.py (default: the model's own)")
    p.add_argument("--steps", type=numbers.steps, default=50)
    p.add_argument("--branch", type=numbers.branch, default=1, metavar="m", help="skip branch of the feature, from 0")
    p.add_argument("--num-images", type=numbers.images, default=4, help="images to average over")
    p.add_argument("--guidance-scale", type=numbers.guidance, help="(default: 7.5; 2.5 for the shipped model)")
    p.add_argument("--seed", type=numbers.seed, default=42, help="image k starts from the noise of seed + k")
    add_device_arguments(p)
    p.add_argument("--out", type=Path, metavar="DIR", help="(default: outputs/<settings>)")
    add_quiet_argument(p)
    return p


def run(args: argparse.Namespace) -> None:
    device = resolve_device(args.device)
    dtype = resolve_dtype(args.dtype, device)
    shipped = args.model is None
    model = SHAPES_SD if shipped else args.model
    name = Path(model).name
    settings = {key: value for key, value in vars(args).items() if key not in ("out", "quiet")}
    out = args.out or Path("outputs") / f"similarity-{name}-{args.steps}-m{args.branch}-{settings_key(settings)}"
    check_can_be_made(out)
    pipe = load_pipeline(StableDiffusionPipeline, model, dtype=dtype, scheduler=args.scheduler, quiet=args.quiet)
    pipe.unet.check_branch(args.branch)
    check_steps(pipe, args.steps)
    pipe.to(device).set_progress_bar_config(disable=args.quiet, leave=False)
    prompts = args.prompt or PROMPTS[shipped]
    guidance = GUIDANCE[shipped] if args.guidance_scale is None else args.guidance_scale

    matrix = torch.zeros(())
    for k in range(args.num_images):  # one by one: the features of many images and steps would not fit into memory
        sample = partial(
            pipe, prompts[k % len(prompts)], num_inference_steps=args.steps, guidance_scale=guidance,
            generator=torch.Generator().manual_seed(args.seed + k), output_type="latent",
        )  # fmt: skip
        matrix = matrix + similarity(features_of_run(sample, pipe.unet, args.branch)) / args.num_images
    if not matrix.isfinite().all():
        raise RunError("the features have non-finite values; try --dtype float32 or bfloat16")
    about = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    about |= {"model": name, "prompt": prompts, "guidance_scale": guidance, "scheduler": type(pipe.scheduler).__name__}
    save(out, matrix, about, f"{name}, feature of branch m = {args.branch}", device)
    share = share_above(matrix)
    print(
        f"{name}, {counted(args.num_images, 'image')}, {counted(len(matrix), 'call')} of the U-Net, "
        f"m = {args.branch}: "
        f"on average {share.mean():.1%} of the other steps are above {THRESHOLD}; least similarity {matrix.min():.3f}"
    )
    print(f"Written {out}: similarity.png, similarity.json, similarity.npz")


def main(argv: list[str] | None = None) -> int:
    return run_cli(lambda: run(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
