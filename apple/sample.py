"""Stable Diffusion 1.x and 2.x in MLX, with and without DeepCache: pictures, seconds, speed-up.

python -m apple.sample                                                  the model shipped with this repository
python -m apple.sample --model DIR --dtype float16 --prompt "a photo of an astronaut"

DIR is a diffusers directory with its weights in safetensors. MLX is installed by `make mlx`; it computes on Apple's GPU
where there is one.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from common import numbers
from common.command_line import Parser, RunError, add_quiet_argument, run_cli
from common.digests import settings_key
from common.shipped import GUIDANCE, PROMPTS, SHAPES_SD
from common.timing import alternate, pairwise, spread
from common.words import counted
from comparison.saving import check_out, made_from, save_comparison
from eval.metrics.distances import distance
from pipelines.cache_options import add_cache_arguments, cache_config, cache_name
from unets.cache.config import CacheConfig

if TYPE_CHECKING:
    from .pipeline import StableDiffusionPipeline

RUNS = ("baseline", "deepcache")


def parser() -> Parser:
    p = Parser(prog="python -m apple.sample", description=__doc__)
    p.add_argument("--model", metavar="DIR", type=Path, help="diffusers directory (default: the shipped model)")
    p.add_argument("--prompt", action="append", help="can be repeated (default: an example)")
    p.add_argument("--negative-prompt", default="", help="negative prompt, for all prompts")
    p.add_argument("--scheduler", choices=["plms", "ddim"], help="(default: the model's own)")
    p.add_argument("--steps", type=numbers.steps, default=50, help="denoising steps")
    p.add_argument("--guidance-scale", type=numbers.guidance, help="(default: 7.5; 2.5 for the shipped model)")
    add_cache_arguments(p, interval=5, branch=1, extensions=("forecast",))
    group = p.add_argument_group("run")
    group.add_argument("--repeats", type=numbers.repeats, default=3, help="timed pairs of baseline and DeepCache")
    group.add_argument("--warm-up", type=numbers.warm_up, default=1, metavar="PAIRS", help="untimed pairs before those")
    group.add_argument("--variant", help="of the weights, such as fp16 (default: none, or the only one available)")
    group.add_argument(
        "--dtype", choices=["float32", "float16", "bfloat16"], default="float32", help="dtype of the networks"
    )
    group.add_argument("--seed", type=numbers.seed, default=42, help="image k starts from the noise of seed + k")
    group.add_argument("--out", type=Path, metavar="DIR", help="(default: outputs/<settings>)")
    add_quiet_argument(group)
    return p


def run(args: argparse.Namespace) -> None:
    # 1. Check what can be checked before a model is loaded.
    cache = cache_config(args)
    identity = made_from(args, cache)
    model = args.model or SHAPES_SD
    slug = f"mlx-{model.name}-{args.scheduler or 'own'}-{args.steps}-{cache_name(args, cache)}-seed{args.seed}"
    out = (args.out or Path("outputs") / f"{slug}-{settings_key(identity)}").resolve()
    check_out(out, identity)
    mx = import_mlx()

    # 2. Load, and check what the model decides.
    from .pipeline import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.load(model, sampler=args.scheduler, variant=args.variant, dtype=args.dtype)
    pipe.full_steps(cache, args.steps)
    prompts = args.prompt or PROMPTS[args.model is None][:1]
    arguments = {
        "num_steps": args.steps,
        "guidance_scale": GUIDANCE[args.model is None] if args.guidance_scale is None else args.guidance_scale,
        "negative_prompt": args.negative_prompt,
    }
    where = {"sampler": pipe.sampler, "mlx": mx.__version__, "device": mx.default_device().type.name}
    print(
        f"{counted(len(prompts), 'image')}, {counted(args.steps, 'step')} of {pipe.sampler}, "
        f"MLX on {where['device']}, {args.dtype}; DeepCache {cache_name(args, cache)}"
    )

    # 3. Run both ways in turn, show and save.
    images, measured = compare(pipe, prompts, args, cache, arguments)
    record = {"made_from": identity, "resolved": {**arguments, **where, "prompt": prompts}, "cache": cache.to_json()}
    save_comparison(out, images, {**record, **measured})
    print(report(measured))
    print(f"Written          {out}: output.png (above baseline, below DeepCache), every image, result.json")


def import_mlx() -> Any:
    """`mlx.core`, late, since it need not be there. Raises RunError if it can't be imported."""
    try:
        return importlib.import_module("mlx.core")
    except ImportError as error:
        reason = str(error).split("\n")[0]
        raise RunError(
            f"MLX can't be imported ({reason}); run `make mlx`, or pip install -r requirements-mlx.txt"
        ) from None


def compare(
    pipe: StableDiffusionPipeline,
    prompts: list[str],
    args: argparse.Namespace,
    cache: CacheConfig,
    arguments: dict[str, Any],
) -> tuple[dict[str, list[Image.Image]], dict[str, Any]]:
    """Baseline and DeepCache from the same noise in turn: the images of each, and what was measured.

    Raises:
        RunError: an image with non-finite values.
    """
    images: dict[str, list[Image.Image]] = {}

    def once(name: str) -> tuple[float, dict[bool, list[float]]]:
        seconds: dict[bool, list[float]] = {True: [], False: []}  # of each step, by whether it is full
        start = last = time.perf_counter()
        with tqdm(total=len(pipe.steps(args.steps)), desc=name, leave=False, disable=args.quiet) as bar:

            def after_step(_: int, full: bool) -> None:
                nonlocal last
                now = time.perf_counter()
                seconds[full].append(now - last)
                last = now
                bar.update()

            made = pipe(
                prompts, pipe.noise(len(prompts), args.seed), **arguments,
                cache=cache if name == "deepcache" else CacheConfig(), after_step=after_step,
            )  # fmt: skip
        total = time.perf_counter() - start
        if not np.isfinite(made).all():
            raise RunError(f"the {name} images have non-finite values; try --dtype float32 or bfloat16")
        images[name] = [Image.fromarray((255 * image).round().astype(np.uint8)) for image in made]
        return total, {True: seconds[True][1:], False: seconds[False]}  # the very first has the text encoder in it

    calls = [partial(once, name) for name in RUNS]
    alternate(calls, args.warm_up)
    results = dict(zip(RUNS, alternate(calls, args.repeats), strict=True))
    totals = {name: [total for total, _ in results[name]] for name in RUNS}
    steps = {
        name: {full: [s for _, by_kind in results[name] for s in by_kind[full]] for full in (True, False)}
        for name in RUNS
    }
    found = distance(images["baseline"], images["deepcache"])
    return images, {
        "seconds": {name: spread(totals[name]) for name in RUNS},
        "full_step": {name: spread(steps[name][True]) if steps[name][True] else None for name in RUNS},
        "retrieve_step": spread(steps["deepcache"][False]) if steps["deepcache"][False] else None,
        "speed_up": pairwise(*totals.values()),
        "distance": {name: [v if np.isfinite(v) else None for v in values] for name, values in found.items()},
    }


def report(measured: dict[str, Any]) -> str:
    """The measurements as lines for the terminal."""

    def cell(times: dict[str, float] | None) -> str:
        return f"{'–' if times is None else format(times['median'], '.3f') + ' s':>12}"

    up, full = measured["speed_up"], measured["full_step"]
    psnr = [value for value in measured["distance"]["psnr"] if value is not None]
    return "\n".join(
        [
            f"{'':<16}{'baseline':>12}{'DeepCache':>12}   speed-up, median (least–greatest of the pairs)",
            f"{'end-to-end':<16}{''.join(cell(measured['seconds'][name]) for name in RUNS)}   "
            f"{up['median']:.2f}× ({up['min']:.2f}–{up['max']:.2f})",
            f"{'  full step':<16}{''.join(cell(full[name]) for name in RUNS)}",
            f"{'  retrieve step':<16}{cell(None)}{cell(measured['retrieve_step'])}",
            "Images           "
            + (f"PSNR {statistics.median(psnr):.1f} dB to the baseline's" if psnr else "equal to the baseline's"),
        ]
    )


def main(argv: list[str] | None = None) -> int:
    return run_cli(lambda: run(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
