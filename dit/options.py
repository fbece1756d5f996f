"""What the commands here share: a model, its sampler, and the pictures of any description of a cache."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from common import numbers
from common.command_line import RunError, add_quiet_argument
from common.device import add_device_arguments, resolve_device, resolve_dtype
from common.shipped import SHAPES_DIT
from ldm.sample import labels_of
from pipelines.loading import build_pipeline, check_steps, load_pipeline

from . import tiny
from .config import LayerCacheConfig
from .pipeline import OFF, DiTPipeline

GUIDANCE = {True: 1.5, False: 4.0}  # by whether the model is one of ours; 4 is that of diffusers
RANDOM = "random weights"


def add_model_arguments(p: argparse.ArgumentParser, *, steps: int, num_images: int) -> None:
    """Model, sampler, pictures, device."""
    p.add_argument("--model", metavar="DIR", help="a diffusers directory or hub id, such as facebook/DiT-XL-2-256 "
                   "(default: the shipped model)")  # fmt: skip
    p.add_argument("--tiny", action="store_true", help="small random weights, to see it run")
    p.add_argument("--scheduler", help="ddim, dpm++, … (default: the model's own)")
    p.add_argument("--steps", type=numbers.steps, default=steps, help="denoising steps")
    p.add_argument("--guidance-scale", type=numbers.guidance, help="(default: 1.5; of another --model 4)")
    p.add_argument(
        "--labels", default="random",
        help="random; balanced, which goes through the classes in turn; or a list such as 207,88, taken in turn",
    )  # fmt: skip
    p.add_argument("--num-images", type=numbers.images, default=num_images)
    p.add_argument("--batch-size", type=numbers.batch, default=16)
    p.add_argument("--seed", type=numbers.seed, default=42, help="image k starts from the noise of seed + k")
    add_device_arguments(p)
    add_quiet_argument(p)


@dataclass(frozen=True, eq=False)
class Maker:
    """Makes pictures, of which each depends on its number alone: label and noise are the same with any cache."""

    pipe: DiTPipeline
    name: str
    steps: int
    guidance_scale: float
    labels: str
    seed: int
    batch_size: int

    @property
    def num_calls(self) -> int:
        """T, calls of the transformer in a run."""
        self.pipe.scheduler.set_timesteps(self.steps)
        return len(self.pipe.scheduler.timesteps)

    @property
    def depth(self) -> int:
        """L."""
        return self.pipe.transformer.depth

    def batches(self, indices: Sequence[int]) -> Iterator[Sequence[int]]:
        """The indices, a batch at a time."""
        for start in range(0, len(indices), self.batch_size):
            yield indices[start : start + self.batch_size]

    def make_batch(self, indices: Sequence[int], cache: LayerCacheConfig = OFF) -> np.ndarray:
        """Pictures of one batch, uint8 (B, H, W, 3).

        Raises:
            RunError: they hold values that are not finite.
        """
        labels = labels_of(indices, self.labels, self.pipe.num_classes, self.seed).tolist()
        (images,) = self.pipe(
            labels,
            guidance_scale=self.guidance_scale,
            generator=[torch.Generator().manual_seed(self.seed + k) for k in indices],
            num_inference_steps=self.steps,
            output_type="np",
            return_dict=False,
            cache=cache,
        )
        if not np.isfinite(images).all():
            raise RunError("the images hold values that are not finite; try --dtype float32 or bfloat16")
        return (images * 255).round().astype(np.uint8)

    def make(self, indices: Sequence[int], cache: LayerCacheConfig = OFF) -> np.ndarray:
        """Pictures, uint8 (N, H, W, 3). Raises as `make_batch`."""
        return np.concatenate([self.make_batch(batch, cache) for batch in self.batches(indices)])

    @property
    def made_from(self) -> dict[str, Any]:
        """For the record."""
        scheduler = type(self.pipe.scheduler).__name__
        names = ("steps", "guidance_scale", "labels", "seed", "batch_size")
        return {"model": self.name, "scheduler": scheduler, **{name: getattr(self, name) for name in names}}


def open_maker(args: argparse.Namespace) -> Maker:
    """The model that the arguments name, on its device.

    Raises:
        ValueError: naming the argument that is wrong.
    """
    if args.tiny and args.model:
        raise ValueError("--tiny is a model of its own; give it without --model")
    device = resolve_device(args.device)
    dtype = resolve_dtype(args.dtype, device)
    if args.tiny:
        pipe = build_pipeline(DiTPipeline, tiny.parts(), dtype=dtype, scheduler=args.scheduler)
    else:
        settings = {"scheduler": args.scheduler, "quiet": args.quiet}
        pipe = load_pipeline(DiTPipeline, args.model or SHAPES_DIT, dtype=dtype, **settings)
    check_steps(pipe, args.steps)
    pipe.to(device)
    pipe.set_progress_bar_config(disable=args.quiet, leave=False)
    labels_of([0], args.labels, pipe.num_classes, args.seed)
    ours = args.tiny or not args.model
    guidance = GUIDANCE[ours] if args.guidance_scale is None else args.guidance_scale
    name = RANDOM if args.tiny else str(args.model or "shapes-dit, the shipped model")
    return Maker(pipe, name, args.steps, guidance, args.labels, args.seed, args.batch_size)
