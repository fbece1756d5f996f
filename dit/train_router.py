"""Trains a Learning-to-Cache router: which layers of every second step are computed, and which reused.

python -m dit.train_router --steps 20 --out router.json                 the shipped model
python -m dit.train_router --steps 20 --budget 1.5x --out router.json   thresholded where that is reached
python -m dit.sample --steps 20 --schedule router.json

The model's weights stay as they are, and no pictures are needed: dit/router.py says what is learned from what. A router
is for the number of steps, the scheduler and the guidance scale that it was trained with.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common import numbers
from common.command_line import Parser, run_cli
from common.files import check_can_be_written

from .config import LayerCacheConfig, shares
from .macs import layer_macs
from .options import add_model_arguments, open_maker
from .router import THRESHOLD, Router, table_of, threshold_within, train
from .schedules import draw_schedule, write_schedule
from .search import times

FIRST = 1_000_000  # the first picture, so that none of those is trained on that routers are judged by


def parser() -> Parser:
    p = Parser(prog="python -m dit.train_router", description=__doc__)
    add_model_arguments(p, steps=20, num_images=512)
    p.add_argument(
        "--penalty", type=numbers.real(0, 1), default=1e-5, metavar="λ", help="on the sum of a pair's scores"
    )
    p.add_argument("--learning-rate", type=numbers.real(0, 10), default=0.1)
    what = p.add_mutually_exclusive_group()
    what.add_argument(
        "--threshold", type=numbers.real(0, 1), default=THRESHOLD, help="layers scored above it are computed"
    )
    what.add_argument("--budget", type=times, metavar="1.5x", help="the least threshold with so many times fewer MACs")
    p.add_argument("--out", type=Path, metavar="FILE", default=Path("router.json"), help="a picture goes beside it")
    return p


def run(args: argparse.Namespace) -> None:
    picture = args.out.with_suffix(".png")
    check_can_be_written(args.out, picture)
    if args.steps < 2:
        raise ValueError(f"--steps is {args.steps}; a router is for pairs of steps, so that it takes at least 2")
    maker = open_maker(args)
    num_steps, macs = maker.num_calls, layer_macs(maker.pipe.transformer.config)
    router = Router(num_steps, maker.depth).to(maker.pipe.device)
    runs = -(-args.num_images // args.batch_size)
    log: list[dict[str, float]] = []
    bar = tqdm(total=runs, desc="router", disable=args.quiet, leave=False)

    def see(distance: float, loss: float) -> None:
        log.append({"distance": distance, "loss": loss, "mean_score": float(router.scores().detach().mean())})
        bar.set_postfix({name: f"{value:.3g}" for name, value in log[-1].items()})
        bar.update()

    settings = {"runs": runs, "learning_rate": args.learning_rate, "penalty": args.penalty}
    train(maker, router, **settings, first=FIRST, see=see)
    bar.close()
    scores = router.scores().detach().cpu().double().numpy()
    threshold = args.threshold
    if args.budget is not None:
        threshold = threshold_within(scores, num_steps, macs, args.budget)
    table = table_of(scores, num_steps, threshold)
    attention, mlp = shares(table)
    print(
        f"loss {log[0]['loss']:.4g} → {log[-1]['loss']:.4g}; above {threshold:.3g}: {attention:.0%} of attention and "
        f"{mlp:.0%} of MLPs are computed, {macs.speed_up(table):.2f} times fewer MACs"
    )
    write_schedule(
        args.out,
        LayerCacheConfig.of_table(table),
        {**maker.made_from, **settings, "threshold": threshold},
        scores=np.round(scores, 4).tolist(),
        log=[{name: round(value, 8) for name, value in line.items()} for line in log],
    )
    drawn = np.ones(table.shape)
    drawn[1::2] = scores
    draw_schedule(picture, table, f"router, {macs.speed_up(table):.2f} times fewer MACs", drawn)
    print(f"Written  {args.out}, {picture}; python -m dit.sample --steps {args.steps} --schedule {args.out}")


def main(argv: list[str] | None = None) -> int:
    return run_cli(lambda: run(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
