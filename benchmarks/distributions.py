"""Time and peak memory of FID, its standard error, precision and recall, and KID on random features.

python -m benchmarks.distributions                 each in its own process: 50,000 × 2,048; 10,000 against 10,000
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Callable

import numpy as np

from common import numbers
from common.command_line import Parser, run_cli
from common.memory import peak_memory
from eval.metrics.distributions import Gaussian, RunningGaussian, frechet_distance, precision_recall
from eval.metrics.intervals import frechet_influence, standard_error
from eval.metrics.kid import kid


def parser() -> Parser:
    p = Parser(prog="python -m benchmarks.distributions", description=__doc__)
    p.add_argument("--images", type=numbers.whole(2, numbers.MOST_IMAGES), default=50_000, help="for FID's statistics")
    p.add_argument(
        "--neighbours",
        type=numbers.whole(4, numbers.MOST_IMAGES),
        default=10_000,
        help="images on each side, for the other metrics",
    )
    p.add_argument("--features", type=numbers.whole(1, 100_000), default=2_048)
    p.add_argument("--batch-size", type=numbers.batch, default=64)
    return p


def statistics(images: int, features: int, batch_size: int) -> float:
    """FID of two sets of random features, each seen a batch at a time."""
    sets = []
    for seed in range(2):
        rng, running = np.random.default_rng(seed), RunningGaussian(features)
        for start in range(0, images, batch_size):
            size = min(batch_size, images - start)
            running.update(rng.standard_normal((size, features), dtype=np.float32))
        sets.append(running.gaussian())
    return frechet_distance(*sets)


def influences(images: int, features: int) -> float | None:
    """The standard error of FID of random features."""
    rows = np.random.default_rng(0).standard_normal((images, features), dtype=np.float32)
    running = RunningGaussian(features)
    running.update(rows)
    return standard_error(frechet_influence(rows, running.gaussian(), Gaussian(np.zeros(features), np.eye(features))))


def balls(images: int, features: int) -> tuple[float, float]:
    """Precision and recall of two sets of random features."""
    sets = [np.random.default_rng(seed).standard_normal((images, features), dtype=np.float32) for seed in range(2)]
    return precision_recall(*sets, quiet=True)


def kernels(images: int, features: int) -> float:
    """KID of two sets of random features."""
    sets = [np.random.default_rng(seed).standard_normal((images, features), dtype=np.float32) for seed in range(2)]
    return kid(*sets).value


def _measured(work: Callable, *args: int) -> str:
    started = time.perf_counter()
    work(*args)
    return f"{time.perf_counter() - started:.0f} s, at most {peak_memory() / 2**30:.2f} GiB"


def run(args: argparse.Namespace) -> None:
    context = multiprocessing.get_context("spawn")  # peak memory is per process
    for title, call in (
        (f"FID of two sets of {args.images:,} images", (statistics, args.images, args.features, args.batch_size)),
        (f"its standard error, {args.neighbours:,} images", (influences, args.neighbours, args.features)),
        (f"KID, {args.neighbours:,} on each side", (kernels, args.neighbours, args.features)),
        (f"precision and recall, {args.neighbours:,} on each side", (balls, args.neighbours, args.features)),
    ):
        with context.Pool(1) as pool:
            print(f"{title}, {args.features:,} features: {pool.apply(_measured, call)}", flush=True)


def main(argv: list[str] | None = None) -> int:
    return run_cli(lambda: run(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
