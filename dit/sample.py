"""Class to image with a diffusion transformer: baseline and layer cache, side by side.

python -m dit.sample                                             the shipped model, every second step cheap
python -m dit.sample --steps 20 --schedule router.json           what a router, or a search, found
python -m dit.sample --tiny                                      random weights, to see it run
python -m dit.sample --model facebook/DiT-XL-2-256 --labels 207,360 --steps 50
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common import numbers
from common.command_line import Parser, run_cli
from common.digests import settings_key
from common.environment import versions
from common.timing import Clock, alternate, pairwise, spread
from common.words import counted
from comparison.saving import check_out, save_comparison
from eval.metrics.distances import psnr

from .cache_options import add_cache_arguments, cache_config
from .config import LayerCacheConfig, shares
from .macs import layer_macs
from .options import RANDOM, Maker, add_model_arguments, open_maker
from .pipeline import OFF

RUNS = ("baseline", "cached")
NO_SETTINGS = (  # change no picture, or are in the cache
    "out", "quiet", "repeats", "warm_up", "schedule", "cache_interval", "outer_blocks", "reuse", "forecast",
    "forecast_order",
)  # fmt: skip
EQUAL = 168  # dB, by which `psnr` stands for pictures that are equal


def parser() -> Parser:
    p = Parser(prog="python -m dit.sample", description=__doc__)
    add_model_arguments(p, steps=50, num_images=8)
    add_cache_arguments(p)
    p.add_argument("--repeats", type=numbers.repeats, default=3, help="timed pairs of baseline and cache")
    p.add_argument("--warm-up", type=numbers.warm_up, default=1, metavar="PAIRS", help="pairs before that, not timed")
    p.add_argument("--out", type=Path, metavar="DIR", help="(default: outputs/<settings>)")
    return p


def compare(
    maker: Maker, cache: LayerCacheConfig, num_images: int, *, repeats: int, warm_up: int
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Pictures by run, uint8 (N, H, W, 3), both made in turn; seconds, MACs and PSNR."""
    clock = Clock(maker.pipe.device)

    def run(description: LayerCacheConfig) -> tuple[float, np.ndarray]:
        clock.synchronise()
        start = time.perf_counter()
        images = maker.make(range(num_images), description)
        clock.synchronise()
        return time.perf_counter() - start, images

    calls = [partial(run, OFF), partial(run, cache)]
    alternate(calls, warm_up)
    measured = dict(zip(RUNS, alternate(calls, repeats), strict=True))
    seconds = {name: [one for one, _ in results] for name, results in measured.items()}
    images = {name: results[-1][1] for name, results in measured.items()}
    table, macs = cache.table(maker.num_calls, maker.depth), layer_macs(maker.pipe.transformer.config)
    attention, mlp = shares(table)
    halves = 2 if maker.guidance_scale > 1 else 1
    return images, {
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "speed_up": pairwise(seconds["baseline"], seconds["cached"]),
        "macs_per_image": {"baseline": halves * len(table) * macs.full, "cached": halves * macs.total(table)},
        "speed_up_in_macs": macs.speed_up(table),
        "computed": {"attention": attention, "mlp": mlp},
        "psnr": psnr(images["cached"], images["baseline"]).tolist(),
        "versions": versions(maker.pipe.device),
    }


def report(result: dict[str, Any]) -> str:
    """What was measured, for a terminal."""
    seconds, speed, macs = result["seconds"], result["speed_up"], result["macs_per_image"]
    different = [value for value in result["psnr"] if value < EQUAL]
    equal = len(result["psnr"]) - len(different)
    distance = f"PSNR {statistics.median(different):.1f} dB (least {min(different):.1f})" if different else ""
    equal_ones = f"{equal} equal to the baseline's" if equal else ""
    return "\n".join(
        [
            "               baseline       cached   speed-up, median (least–greatest of the pairs)",
            f"end-to-end   {seconds['baseline']['median']:8.2f} s   {seconds['cached']['median']:8.2f} s   "
            f"{speed['median']:.2f}× ({speed['min']:.2f}–{speed['max']:.2f})",
            f"MACs         {macs['baseline'] / 1e9:#8.4g} G   {macs['cached'] / 1e9:#8.4g} G   "
            f"{result['speed_up_in_macs']:.2f}×, of the transformer, an image",
            f"Computed     {result['computed']['attention']:.0%} of attention, {result['computed']['mlp']:.0%} of MLPs",
            f"Images       {', '.join(part for part in (distance, equal_ones) if part)}",
        ]
    )


def run(args: argparse.Namespace) -> None:
    cache = cache_config(args)
    given = {name: value for name, value in vars(args).items() if name not in NO_SETTINGS}
    settings = json.loads(json.dumps({**given, "cache": cache.to_json()}))
    model = "tiny" if args.tiny else Path(args.model or "shapes-dit").name
    slug = f"{model}-{args.steps}-{cache.name()}-seed{args.seed}-{settings_key(settings)}"
    out = (args.out or Path("outputs") / slug).resolve()
    check_out(out, settings)
    maker = open_maker(args)
    cache.table(maker.num_calls, maker.depth)
    scheduler, device = type(maker.pipe.scheduler).__name__, maker.pipe.device.type
    print(
        f"{counted(args.num_images, 'image')} of {maker.name}, {counted(args.steps, 'step')} of {scheduler}, {device}, "
        f"{str(maker.pipe.transformer.dtype).removeprefix('torch.')}; layer cache {cache.name()}"
    )
    if maker.name == RANDOM:
        print("Random weights: what comes out is noise. It shows that all runs, and nothing of quality.")
    images, result = compare(maker, cache, args.num_images, repeats=args.repeats, warm_up=args.warm_up)
    pictures = {name: [Image.fromarray(one) for one in images[name]] for name in RUNS}
    record = {"made_from": settings, "resolved": maker.made_from, "cache": cache.to_json(), **result}
    save_comparison(out, pictures, record)
    print(report(result))
    print(f"Written      {out}: output.png (above baseline, below cached), every image, result.json")


def main(argv: list[str] | None = None) -> int:
    return run_cli(lambda: run(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
