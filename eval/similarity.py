"""Figure 2: how alike the deep features of a run's steps are, every step computed in full.

python -m eval.similarity                                         the model shipped with this repository
python -m eval.similarity --model stable-diffusion-v1-5/stable-diffusion-v1-5 --branch 1 --out results/figure2

It is the feature that DeepCache keeps: what enters the up layer u_m from below.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .arguments import DTYPES, Formatter, RunError, at_least, device_and_dtype, exit_status
from .files import written_aside
from .plotting import pyplot

THRESHOLD = 0.95  # Figure 2's


def features_of_run(run: Callable[[], Any], unet: Any, cache_branch_id: int) -> Tensor:
    """What enters u_m at each call of a forked U-Net within `run()`, in the order of the calls, on the CPU.

    Args:
        run: samples with `unet` as it likes, as long as every step is full (interval 1).
        cache_branch_id: m.

    Returns:
        (T, B, C, H, W) for T calls; for a video (T, B * frames, C, H, W); with guidance B is both halves of the batch.

    Raises:
        ValueError: no such branch; a run that makes retrieve steps, no step at all, or batches of several sizes.
    """
    unet.check_branch(cache_branch_id)
    features: list[Tensor] = []

    def ask(_: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if kwargs.get("cache_branch_id") is not None:
            raise ValueError("retrieve steps have no features of their own; run with cache_interval=1")
        return args, {**kwargs, "cache_branch_id": cache_branch_id}

    def take(_: Any, __: tuple, kwargs: dict, output: Any) -> Any:
        """Takes the feature, and gives the caller what it would have had."""
        given_tuple = isinstance(output, tuple)
        features.append((output[1] if given_tuple else output.cached_feature).detach().cpu())
        return output[:1] if given_tuple else type(output)(sample=output.sample)

    hooks = [
        unet.register_forward_pre_hook(ask, with_kwargs=True),
        unet.register_forward_hook(take, with_kwargs=True),
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    if len({feature.shape for feature in features}) != 1:
        raise ValueError("the run must call the U-Net, always with a batch of the same size")
    return torch.stack(features)


def similarity(features: Tensor) -> Tensor:
    """Cosine similarity of all pairs of steps, of each image of the batch by itself, then averaged.

    Args:
        features: (T, B, …)

    Returns:
        (T, T) in float64.
    """
    total = torch.zeros(len(features), len(features), dtype=torch.float64)
    for k in range(features.shape[1]):
        image = torch.nn.functional.normalize(features[:, k].flatten(1).double())  # (T, C * H * W)
        total += image @ image.T
    return total / features.shape[1]


def share_above(matrix: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """Of each step, the share of the other steps whose similarity to it is above the threshold; (T,)."""
    others = ~torch.eye(len(matrix), dtype=torch.bool)
    return ((matrix > threshold) & others).sum(1).double() / max(1, len(matrix) - 1)


def plot(matrix: np.ndarray, share: np.ndarray, title: str, path: Path) -> None:
    """Figure 2: the heat map, and below it the share of similar steps."""
    plt = pyplot()
    figure, (heat, curve) = plt.subplots(
        2, 1, figsize=(5, 6.4), height_ratios=(3, 1), layout="constrained", sharex=True
    )
    image = heat.imshow(matrix, vmin=min(0.0, float(matrix.min())), vmax=1, aspect="auto", cmap="viridis")
    figure.colorbar(image, ax=heat, label="cosine similarity")
    heat.set(title=title, ylabel="step")
    curve.plot(100 * share, color="#4c78a8")
    curve.set(xlabel="step", ylabel=f"% of steps\nabove {THRESHOLD}", ylim=(0, 105))
    curve.spines[["top", "right"]].set_visible(False)
    with written_aside(path) as aside:
        figure.savefig(aside, dpi=150)
    plt.close(figure)


def save(out: Path, matrix: Tensor, about: dict[str, Any], title: str) -> None:
    """Writes similarity.npz, similarity.png and, last, similarity.json into the folder `out`."""
    share = share_above(matrix)
    steps = len(matrix)
    neighbours = matrix.diagonal(1)
    with written_aside(out / "similarity.npz") as aside:
        np.savez_compressed(aside, similarity=matrix.numpy(), share_above=share.numpy())
    plot(matrix.numpy(), share.numpy(), title, out / "similarity.png")
    summary = {
        "calls_of_the_unet": steps,
        "threshold": THRESHOLD,
        "mean_share_above": float(share.mean()),
        "least_similarity": float(matrix.min()),
        "least_similarity_of_neighbours": float(neighbours.min()) if steps > 1 else None,
        "share_above": share.tolist(),
        "similarity": matrix.tolist(),
    }
    with written_aside(out / "similarity.json") as aside:
        aside.write_text(json.dumps({**about, **summary}, indent=1) + "\n")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m eval.similarity", description=__doc__, formatter_class=Formatter)
    p.add_argument("--model", metavar="ID_OR_PATH", help="Stable Diffusion 1.x or 2.x (default: the shipped model)")
    p.add_argument("--prompt", action="append", help="may be given several times (default: examples)")
    p.add_argument("--scheduler", help="as stable_diffusion.py's (default: the model's own)")
    p.add_argument("--steps", type=int, default=50)
    p.add_argument("--branch", type=int, default=1, metavar="m", help="skip branch of the feature, from 0")
    p.add_argument("--num-images", type=int, default=4, help="images over which similarities are averaged")
    p.add_argument("--guidance-scale", type=float, help="(default: 7.5; 2.5 for the shipped model)")
    p.add_argument("--seed", type=int, default=42, help="image k starts from the noise of seed + k")
    p.add_argument("--device", help="cuda, mps or cpu (default: the first of them that is there)")
    p.add_argument("--dtype", choices=DTYPES, help="(default: float16 on CUDA, else float32)")
    p.add_argument("--out", type=Path, default=Path("outputs/similarity"), metavar="DIR")
    p.add_argument("--quiet", action="store_true", help="no progress bar")
    p.set_defaults(cpu_offload=False)
    return p


def work(args: argparse.Namespace) -> None:
    from pipelines import StableDiffusionPipeline
    from pipelines.loading import SHAPES, load_pipeline
    from stable_diffusion import GUIDANCE, PROMPTS

    from .pictures import check_steps

    at_least(args, steps=1, num_images=1, seed=0)
    device, dtype = device_and_dtype(args)
    shipped = args.model is None
    model = SHAPES if shipped else args.model
    name = Path(model).name
    pipe = load_pipeline(StableDiffusionPipeline, model, dtype=dtype, scheduler=args.scheduler, quiet=args.quiet)
    pipe.unet.check_branch(args.branch)
    check_steps(pipe, args.steps)
    pipe.to(device).set_progress_bar_config(disable=args.quiet, leave=False)
    prompts = args.prompt or PROMPTS[shipped]
    guidance = GUIDANCE[shipped] if args.guidance_scale is None else args.guidance_scale

    matrix = torch.zeros(())
    for k in range(args.num_images):  # one by one: the features of many images and steps would not fit into memory
        generator = torch.Generator().manual_seed(args.seed + k)

        def run(prompt: str = prompts[k % len(prompts)], generator: torch.Generator = generator) -> None:
            pipe(
                prompt, num_inference_steps=args.steps, guidance_scale=guidance, generator=generator,
                output_type="latent",
            )  # fmt: skip

        matrix = matrix + similarity(features_of_run(run, pipe.unet, args.branch)) / args.num_images
    if not matrix.isfinite().all():
        raise RunError("the features hold values that are not finite; try --dtype float32 or bfloat16")
    about = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    about |= {"model": name, "prompt": prompts, "guidance_scale": guidance, "scheduler": type(pipe.scheduler).__name__}
    save(args.out, matrix, about, f"{name}, feature of branch m = {args.branch}")
    share = share_above(matrix)
    print(
        f"{name}, {args.num_images} images, {len(matrix)} calls of the U-Net, m = {args.branch}: on average "
        f"{share.mean():.1%} of the other steps are above {THRESHOLD}; least similarity {matrix.min():.3f}"
    )
    print(f"Written {args.out}: similarity.png, similarity.json, similarity.npz")


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return exit_status(lambda: work(args))


if __name__ == "__main__":
    sys.exit(main())
