"""The schedule of four kinds of steps with the least loss within a budget, by simulated annealing.

The loss of a step depends on steps of three kinds before it, so the exact search of `search` would have too many
states. Annealing (Kirkpatrick et al. 1983) starts from the best uniform schedules, and never ends with a worse one.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

from common.command_line import RunError

from .kinds import ORDERS, Kind, Losses, Schedule, uniform

MOVES = 20_000  # of one annealing, about two seconds
TIMES = 3  # annealings from each start: results differ, on the shipped DDPM by up to a half
HOTTEST, COLDEST = 0.5, 1e-3  # temperatures, as fractions of the initial loss


def best_schedule(losses: Losses, budget: float, *, moves: int = MOVES, seed: int = 0) -> Schedule:
    """The best schedule found with that reduction of MACs; deterministic.

    Raises:
        RunError: not even one full step with the cheapest others reaches it.
    """
    starts = [schedule for _, schedule in uniform(losses, budget)]
    if not starts:
        starts = [Schedule(("full", *[losses.cheapest] * (losses.num_calls - 1)))]
        if losses.speed_up(starts[0].kinds) < budget:
            raise RunError(f"--budget {budget:g}x is out of reach: one full step alone comes to "
                           f"{losses.speed_up(starts[0].kinds):.2f}x")  # fmt: skip
    chance = random.Random(seed)
    total = lru_cache(2**14)(losses.total)  # once it is cold, the same neighbours come again and again
    found = [_anneal(losses, total, budget, start, moves, chance) for start in starts * TIMES]
    return min([*starts, *found], key=total)


def _anneal(
    losses: Losses,
    total_of: Callable[[Schedule], float],
    budget: float,
    start: Schedule,
    moves: int,
    chance: random.Random,
) -> Schedule:
    most = losses.num_calls * losses.cost["full"] / budget
    now = best = start
    loss = least = first = total_of(start)
    for move in range(moves):
        temperature = first * HOTTEST * (COLDEST / HOTTEST) ** (move / moves)
        other = moved(losses, now, chance)
        if losses.macs(other.kinds) > most:
            continue
        total = total_of(other)
        if total <= loss or chance.random() < math.exp((loss - total) / max(temperature, 1e-300)):
            now, loss = other, total
            if loss < least:
                best, least = now, loss
    return best


def moved(losses: Losses, schedule: Schedule, chance: random.Random) -> Schedule:
    """A random move: another kind for one step, two steps swapped, or another order; step 0 stays full."""
    kinds = list(schedule.kinds)
    i = chance.randrange(1, len(kinds))
    match chance.randrange(8):
        case 0 | 1 | 2:
            kinds[i] = chance.choice(losses.kinds)
        case 3 | 4:  # close to each other
            j = min(max(i + chance.choice((-2, -1, 1, 2)), 1), len(kinds) - 1)
            kinds[i], kinds[j] = kinds[j], kinds[i]
        case 5 | 6:  # one more expensive and one cheaper
            kinds[i], kinds[chance.randrange(1, len(kinds))] = chance.choice(losses.kinds), chance.choice(losses.kinds)
        case 7:
            if chance.random() < 0.5:
                return replace(schedule, forecast_order=chance.choice(ORDERS))
            return replace(schedule, skip_order=chance.choice(ORDERS))
    if any(kind == "full" for kind in kinds[losses.positions :]):
        return schedule
    found: tuple[Kind, ...] = tuple(kinds)
    return replace(schedule, kinds=found)
