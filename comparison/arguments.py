"""The scripts' arguments, and the checks that need no model."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from common import numbers
from common.command_line import add_quiet_argument
from common.device import add_device_arguments, resolve_device, resolve_dtype
from common.digests import settings_key
from common.images import fitted, read_image
from pipelines.cache_options import cache_config, cache_name
from pipelines.loading import SCHEDULERS
from unets.cache.config import CacheConfig

from .saving import check_out, made_from

MOST_LARGER = 2  # --image keeps its size up to this many times the pixels of the model's native resolution


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Device, precision, timing, seed and output."""
    group = parser.add_argument_group("run")
    group.add_argument("--repeats", type=numbers.repeats, default=3, help="timed pairs of baseline and DeepCache")
    group.add_argument("--warm-up", type=numbers.warm_up, default=1, metavar="PAIRS", help="untimed pairs before those")
    group.add_argument("--variant", help="of the weights, such as fp16 (default: none, or the only one available)")
    add_device_arguments(group)
    group.add_argument("--channels-last", action="store_true", help="memory format channels_last for U-Net and VAE")
    group.add_argument("--compile", action="store_true", help="torch.compile the U-Net, one graph per kind of step")
    group.add_argument("--cpu-offload", action="store_true", help="offload idle models to the CPU (CUDA)")
    group.add_argument("--seed", type=numbers.seed, default=42, help="image k starts from the noise of seed + k")
    group.add_argument("--out", type=Path, metavar="DIR", help="(default: outputs/<settings>)")
    add_quiet_argument(group)


def add_picture_arguments(p: argparse.ArgumentParser, *, steps: int, guidance: str) -> None:
    """Prompt, image and mask, sampler and size."""
    p.add_argument("--prompt", action="append", help="can be repeated (default: an example)")
    p.add_argument("--negative-prompt", help="negative prompt, for all prompts")
    p.add_argument(
        "--image", metavar="FILE",
        help="start from this image instead of noise; scaled down if much larger than the model's native resolution, "
        "unless a size is given; cropped to another shape, never stretched; transparency becomes white",
    )  # fmt: skip
    p.add_argument(
        "--mask", metavar="FILE",
        help="redraw --image where this mask is white, or opaque if it has transparency",
    )  # fmt: skip
    p.add_argument(
        "--strength",
        type=numbers.real(0, 1),
        help="how much of --image is redrawn, 0 to 1 (default: 0.8; 1 with --mask)",
    )
    p.add_argument("--scheduler", help=f"{', '.join(SCHEDULERS)} (default: the model's own)")
    p.add_argument("--steps", type=numbers.steps, default=steps, help="denoising steps")
    p.add_argument("--guidance-scale", type=numbers.guidance, help=f"(default: {guidance})")
    p.add_argument("--height", type=numbers.pixels, help="pixels (default: the model's own, or the image's)")
    p.add_argument("--width", type=numbers.pixels, help="pixels (default: the model's own, or the image's)")
    p.add_argument("--num-images", type=numbers.images, default=1, help="images per prompt")


@dataclass(frozen=True)
class RunSettings:
    """How a script runs its pipelines, checked."""

    cache: CacheConfig
    cache_name: str
    device: torch.device
    dtype: torch.dtype


def check_arguments(args: argparse.Namespace) -> RunSettings:
    """The settings of cache and run, checked as far as possible without a model.

    Raises:
        ValueError: naming the argument that is wrong.
    """
    cache, device = cache_config(args), resolve_device(args.device)
    if args.cpu_offload and device.type != "cuda":
        raise ValueError(f"--cpu-offload needs --device cuda, not {device.type}")
    return RunSettings(cache, cache_name(args, cache), device, resolve_dtype(args.dtype, device))


def fit_image(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image given as `--image`, resized to (width, height); prints a note if it has to be cropped."""
    if image.width * size[1] != image.height * size[0]:
        print(
            f"--image is {image.width} × {image.height}: cropped around its centre to the shape of "
            f"{size[0]} × {size[1]}, then resized."
        )
    return fitted(image, size)


def read_images(args: argparse.Namespace, num_images: int) -> dict[str, Any]:
    """The pipeline's arguments for `--image` and `--mask`, at the output size, repeated for each output image."""
    if args.image is None:
        if args.mask is not None or args.strength is not None:
            raise ValueError("--mask and --strength need --image")
        return {"height": args.height, "width": args.width}
    image = read_image(args.image)
    mask = read_image(args.mask, "L") if args.mask else None
    if mask is not None and mask.size != image.size:
        raise ValueError(
            f"--mask is {mask.width} × {mask.height}, --image {image.width} × {image.height}; make them the same size"
        )
    size = (args.width or _multiple_of_8(image.width), args.height or _multiple_of_8(image.height))
    strength = args.strength if args.strength is not None else 0.8 if mask is None else 1.0
    found = {"image": [fit_image(image, size)] * num_images, "strength": strength}
    if mask is None:
        return found
    masks = [fitted(mask, size, Image.Resampling.NEAREST)] * num_images
    return {**found, "mask_image": masks, "width": size[0], "height": size[1]}


def fit_to_model(images: dict[str, Any], args: argparse.Namespace, pipe: Any) -> dict[str, Any]:
    """The output of `read_images`, scaled down to the model's native resolution unless a size was given.

    An image of up to twice as many pixels keeps its size. Attention is quadratic in them: where a step takes
    milliseconds at the native resolution, it takes minutes at a megapixel, for a worse image.
    """
    own = pipe.unet.config.sample_size * pipe.vae_scale_factor
    if "image" not in images or args.width or args.height:
        return images
    width, height = images["image"][0].size
    if width * height <= MOST_LARGER * own**2:
        return images
    factor = own / math.sqrt(width * height)
    size = (_multiple_of_8(width * factor), _multiple_of_8(height * factor))
    print(
        f"--image is {width} × {height}, the model's native resolution {own} × {own}: resized to "
        f"{size[0]} × {size[1]}; set --width and --height for another size."
    )
    found = {**images, "image": [fitted(image, size) for image in images["image"]]}
    if "mask_image" in images:
        found["mask_image"] = [fitted(mask, size, Image.Resampling.NEAREST) for mask in images["mask_image"]]
        found |= {"width": size[0], "height": size[1]}
    return found


def _multiple_of_8(side: float) -> int:
    return max(8, int(side / 8) * 8)


class ResultFolder(NamedTuple):
    """Where the result goes, and a record of its inputs as they were when read."""

    path: Path
    made_from: dict[str, Any]


def result_folder(args: argparse.Namespace, settings: RunSettings, model: str) -> ResultFolder:
    """`--out`, or a folder named after the settings. Raises ValueError if the result can't go there."""
    scheduler = getattr(args, "scheduler", None) or "own"
    identity = made_from(args, settings.cache)
    slug = f"{model}-{scheduler}-{args.steps}-{settings.cache_name}-seed{args.seed}-{settings_key(identity)}"
    out = (args.out or Path("outputs") / slug).resolve()
    check_out(out, identity)
    return ResultFolder(out, identity)
