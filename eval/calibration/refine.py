"""A schedule of four kinds improved by trying: random moves, each judged by the images of a real run.

`kinds` predicts a loss from one run with every step full. It leaves out how an error changes later steps, and what
reused attention and guidance do. This begins with what the prediction found, and keeps a move if the images of a run
are no further from the baseline's for it.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from tqdm import tqdm

from .kinds import Losses, Schedule
from .kinds_search import moved

UNUSED = 0.05  # the most of the budget that a schedule to be tried may leave unspent: cheaper ones are hardly better
PATIENCE = 10_000  # moves that are drawn for one to be tried


def refine(
    losses: Losses,
    start: Schedule,
    quality: Callable[[Schedule], float],
    runs: int,
    *,
    seed: int = 0,
    quiet: bool = False,
) -> Schedule:
    """The best schedule of so many that are run, none costing more MACs than the first.

    Args:
        losses: whose kinds and costs count here; what it predicts does not.
        quality: of the images that a schedule makes; higher is better.
        runs: calls of `quality`, of `start` the first.
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
            break  # nothing is left to be tried
        tried.add(other)
        found = quality(other)
        if found >= highest:
            best, highest = other, found
            bar.set_postfix_str(f"{highest:.2f} dB")
    return best
