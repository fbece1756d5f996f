"""Command-line arguments that all scripts share, what they are turned into, and how a script ends."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError

# What goes beyond the paper, by the pipelines' names, and the value that turns it off.
BEYOND: dict[str, Any] = {
    "forecast": 0.0, "reuse_guidance": False, "guidance_stop": 1.0, "refresh_interval": None, "refresh_branch_id": None,
    "reuse_attention": False,
}  # fmt: skip
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class RunError(Exception):
    """A right call that failed: exit status 1."""


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, except where there is none to show."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def at_least(args: argparse.Namespace, **least: int) -> None:
    """Raises ValueError naming the first argument that is below its least value."""
    for name, value in least.items():
        if (given := getattr(args, name)) is not None and given < value:
            raise ValueError(f"--{name.replace('_', '-')} is {given}; it must be at least {value}")


def add_cache_arguments(
    parser: argparse.ArgumentParser, *, interval: int, branch: int, beyond: Sequence[str] = ()
) -> None:
    """Interval, branch, schedule, and those of `BEYOND` that are named. Names with underscores are the original's."""
    group = parser.add_argument_group("cache")
    one_of = group.add_mutually_exclusive_group()
    one_of.add_argument(
        "--cache-interval", "--cache_interval", type=int, default=interval, metavar="N", help="every N-th step is full"
    )
    group.add_argument(
        "--cache-branch-id", "--cache_branch_id", type=int, default=branch, metavar="m",
        help="skip branch of the kept feature, from 0",
    )  # fmt: skip
    group.add_argument("--non-uniform", action="store_true", help="gather full steps around --center")
    group.add_argument("--center", type=int, metavar="STEP", help="of the non-uniform schedule, for example 15")
    group.add_argument("--pow", type=float, help="of the non-uniform schedule, above 1, for example 1.4")
    group.add_argument(
        "--cache-steps", type=whole_numbers, metavar="0,3,…", help="the full steps, instead of an interval"
    )
    one_of.add_argument(
        "--calibrated", type=Path, metavar="FILE",
        help="branch, full steps and forecast that eval.calibrate --out wrote, instead of all these options",
    )  # fmt: skip
    if beyond:
        group = parser.add_argument_group("beyond the paper")
    if "forecast" in beyond:
        group.add_argument(
            "--forecast", type=float, default=0.0, metavar="g",
            help="carry features on from the last two kept: 0 copies the last, as in the paper; 1 is the straight line",
        )  # fmt: skip
    if "reuse_guidance" in beyond:
        group.add_argument(
            "--reuse-guidance", action="store_true",
            help="retrieve steps run the conditional half alone, with the full steps' guidance difference",
        )  # fmt: skip
    if "guidance_stop" in beyond:
        group.add_argument(
            "--guidance-stop", type=float, default=1.0, metavar="SHARE", help="and so do all steps after this share"
        )
    if "refresh_interval" in beyond:
        group.add_argument(
            "--refresh-interval", type=int, metavar="STEPS",
            help="so many steps from a full one, and so on, retrieve at --refresh-branch-id and keep anew at m",
        )  # fmt: skip
        group.add_argument("--refresh-branch-id", type=int, metavar="m", help="a deeper skip branch, for example 5")
    if "reuse_attention" in beyond:
        group.add_argument(
            "--reuse-attention", action="store_true",
            help="retrieve steps take what attention adds from full steps too; with --forecast 1, carried on",
        )  # fmt: skip


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Device, precision, timing, seed and output."""
    group = parser.add_argument_group("run")
    group.add_argument("--repeats", type=int, default=3, help="timed pairs of baseline and DeepCache")
    group.add_argument("--warm-up", type=int, default=1, metavar="PAIRS", help="pairs before that, not timed")
    group.add_argument("--device", help="cuda, mps or cpu (default: the first of them that is there)")
    group.add_argument("--dtype", choices=DTYPES, help="(default: float16 on CUDA, else float32)")
    group.add_argument("--channels-last", action="store_true", help="memory format of the U-Net and the VAE")
    group.add_argument("--compile", action="store_true", help="torch.compile the U-Net's two kinds of step")
    group.add_argument("--cpu-offload", action="store_true", help="keep on the accelerator only what is at work (CUDA)")
    group.add_argument("--seed", type=int, default=42, help="image k starts from the noise of seed + k")
    group.add_argument(
        "--out", type=Path, metavar="DIR", help="(default: a folder under outputs/ named after the settings)"
    )
    group.add_argument("--quiet", action="store_true", help="no progress bars")


def add_set_arguments(parser: argparse.ArgumentParser, *, num_images: int | None = 64, batch_size: int = 32) -> None:
    """Of the scripts that make large sets of images: how many, where, and in which pieces."""
    group = parser.add_argument_group("set")
    group.add_argument("--num-images", type=int, default=num_images, help="a set that has fewer is continued")
    group.add_argument("--batch-size", type=int, default=batch_size, help="of each process; changes no image's noise")
    group.add_argument("--seed", type=int, default=0, help="image k's noise is that of seed and k")
    group.add_argument("--png", action="store_true", help="write every image as a PNG too")
    group.add_argument("--device", help="cuda, mps or cpu (default: the first of them that is there)")
    group.add_argument("--dtype", choices=DTYPES, default="float32", help="of the networks")
    group.add_argument("--out", type=Path, metavar="DIR", help="(default: a folder under outputs/ named after it all)")
    group.add_argument("--quiet", action="store_true", help="no progress bars")


def cache_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The cache's arguments of a pipeline; of `BEYOND` only what is turned on.

    What `--calibrated` names is put into `args` too.

    Raises:
        ValueError: options that need or exclude each other, or what `take_calibrated` raises.
    """
    if (args.pow is None) != (args.center is None):
        raise ValueError("--pow and --center belong together, for example --non-uniform --center 15 --pow 1.4")
    if args.non_uniform and args.pow is None:
        raise ValueError("--non-uniform needs --center and --pow, for example --center 15 --pow 1.4")
    if args.pow is not None and not args.non_uniform:
        raise ValueError("--center and --pow need --non-uniform")
    if args.cache_steps is not None and args.non_uniform:
        raise ValueError("give either --cache-steps or --non-uniform")
    if args.calibrated is not None:
        take_calibrated(args)
    elif not math.isfinite(getattr(args, "forecast", 0.0)):
        raise ValueError(f"--forecast is {args.forecast}; it must be a number such as 1")
    if not 0 <= getattr(args, "guidance_stop", 1.0) <= 1:
        raise ValueError(f"--guidance-stop is {args.guidance_stop}; it must be 0 to 1, the share of steps before it")
    beyond = {name: getattr(args, name, off) for name, off in BEYOND.items()}
    return {
        "cache_interval": args.cache_interval,
        "cache_branch_id": args.cache_branch_id,
        "uniform": not args.non_uniform,
        "pow": args.pow,
        "center": args.center,
        "cache_steps": args.cache_steps,
        **{name: value for name, value in beyond.items() if value != BEYOND[name]},
    }


def read_calibration(path: Path) -> dict[str, Any]:
    """`steps`, `cache_branch_id`, `cache_steps` and `forecast` of a file that eval.calibrate --out wrote.

    Raises:
        ValueError: another file.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        calibration = {name: found[name] for name in ("steps", "cache_branch_id", "cache_steps")}
        calibration["forecast"] = forecast = found.get("forecast", 0.0)
        whole = (found["steps"], found["cache_branch_id"], *found["cache_steps"])
        table = forecast if isinstance(forecast, list) else [forecast]
        right = all(type(n) is int for n in whole) and all(map(math.isfinite, table))
    except (OSError, ValueError, LookupError, TypeError):
        right = False
    if not right:
        raise ValueError(
            f"--calibrated {path} cannot be read as a calibration; make one with python -m eval.calibrate --out FILE"
        )
    return calibration


def take_calibrated(args: argparse.Namespace) -> None:
    """Puts branch, full steps and forecast of the file `--calibrated` in the place of the options that name them.

    Raises:
        ValueError: what `read_calibration` raises; a file for other steps or of a forecast that the script does not
            offer; options that it excludes.
    """
    file = f"--calibrated {args.calibrated}"
    found = read_calibration(args.calibrated)
    steps, full, forecast = found["steps"], found["cache_steps"], found["forecast"]
    if steps != args.steps:
        raise ValueError(f"{file} is for --steps {steps}, not {args.steps}; give --steps {steps}, or calibrate anew")
    if args.non_uniform or args.cache_steps not in (None, full):
        raise ValueError(f"{file} has the full steps; leave out --cache-steps and --non-uniform")
    if not hasattr(args, "forecast") and torch.tensor(forecast).any():
        raise ValueError(f"{file} is for a forecast, which is not offered here; calibrate anew with --forecast 0")
    if getattr(args, "forecast", 0.0) not in (0.0, forecast):
        raise ValueError(f"{file} has a forecast of its own; leave out --forecast")
    args.cache_branch_id, args.cache_steps = found["cache_branch_id"], full
    if hasattr(args, "forecast"):
        args.forecast = forecast


def schedule_of(cache: dict[str, Any]) -> dict[str, Any]:
    """Of the cache's arguments of a pipeline those that say which steps are full, and the branch."""
    return {name: value for name, value in cache.items() if name not in BEYOND}


def device_and_dtype(args: argparse.Namespace) -> tuple[torch.device, torch.dtype]:
    """Where and in which precision to run.

    Raises:
        ValueError: a device that is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    name = args.device or next(name for name, is_there in there.items() if is_there)
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"unknown --device {name!r}; use cuda, mps or cpu") from None
    if not there.get(device.type, False) or (device.index or 0) >= max(1, torch.cuda.device_count()):
        raise ValueError(f"--device {name} is not there; this machine has {', '.join(n for n in there if there[n])}")
    if getattr(args, "cpu_offload", False) and device.type != "cuda":
        raise ValueError(f"--cpu-offload needs --device cuda, not {name}")
    return device, DTYPES[args.dtype or ("float16" if device.type == "cuda" else "float32")]


def read_image(path: str, mode: str = "RGB") -> Image.Image:
    """The image file. Raises ValueError if it can't be read."""
    try:
        with Image.open(path) as image:
            if (frames := getattr(image, "n_frames", 1)) > 1:
                raise ValueError(f"{path} is a video of {frames} frames; give a still image")
            return image.convert(mode)
    except FileNotFoundError:
        raise ValueError(f"there is no image {path}") from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError) as error:
        raise ValueError(f"cannot read the image {path}: {error}; give a still image such as a PNG") from None


def exit_status(work: Callable[[], None]) -> int:
    """Does the work of a script; a wrong call ends in one line and 2, a failed run in one line and 1, Ctrl-C in 130."""
    try:
        work()
    except ValueError as error:
        message, status = str(error), 2
    except RunError as error:
        message, status = str(error), 1
    except OSError as error:
        message, status = f"{error}; is the disk full?", 1
    except RuntimeError as error:
        if "out of memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        remedy = "fewer images, a smaller size, --dtype float16, --cpu-offload, for videos --decode-chunk-size 1"
        message, status = f"out of memory; try {remedy}", 1
    except KeyboardInterrupt:
        message, status = "interrupted; nothing was written", 130
    else:
        return 0
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return status


def whole_numbers(text: str) -> list[int]:
    """Comma-separated whole numbers of the command line."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers such as 0,3,6") from None
