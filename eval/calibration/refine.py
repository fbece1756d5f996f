"""Improves a schedule of four kinds by trial: random moves, each evaluated on the images of a real run.

`kinds` predicts a loss from one run with every step full. It ignores how an error changes later steps, and the effect
of reused attention and guidance. This starts from the schedule found by prediction, and keeps a move if the images of
a run are no further from the baseline's.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from tqdm import tqdm

from .kinds import Losses, Schedule
from .kinds_search import moved

UNUSED = 0.05  # share of the budget that a trial may leave unspent: cheaper schedules are hardly better
PATIENCE = 10_000  # random moves until one is worth a trial


def refine(
    losses: Losses,
    start: Schedule,
    quality: Callable[[Schedule], float],
    runs: int,
    *,
    seed: int = 0,
    quiet: bool = False,
) -> Schedule:
    """The best schedule of those that are run, none of which has more MACs than the first.

    Args:
        losses: used for its kinds and costs, not for its predictions.
        quality: the quality of a schedule's images; higher is better.
        runs: number of calls of `quality`, the first of which is for `start`.
    """
    chance = random.Random(seed)
    most = losses.macs(start.kinds)
    best, highest, tried = start, quality(start), {start}
    bar = tqdm(range(runs - 1), desc="refine", leave=False, disable=quiet)
    for _ in bar:
        for _ in range(PATIENCE):
            other = moved(losses, best, chance)
            if other not in tried and (1 - UNUSED) * most <= losses.macs(other.kinds) <= most:
                break
        else:
            break  # nothing is left to try
        tried.add(other)
        found = quality(other)
        if found >= highest:
            best, highest = other, found
            bar.set_postfix_str(f"{highest:.2f} dB")
    return best
