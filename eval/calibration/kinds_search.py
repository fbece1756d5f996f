"""The schedule of four kinds of steps with the least loss within a budget, by simulated annealing.

What a step loses depends on steps of three kinds before it, so that the exact search of `search` would have too many
states. Annealing (Kirkpatrick et al. 1983) begins with the best uniform schedules, and ends with none worse than them.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace

from common.command_line import RunError

from .kinds import ORDERS, Kind, Losses, Schedule, uniform

MOVES = 20_000  # of one annealing, about two seconds
TIMES = 3  # that it is done from each beginning: what it finds differs, on the shipped DDPM by up to a half
HOTTEST, COLDEST = 0.5, 1e-3  # temperatures, in parts of the loss at the beginning


def best_schedule(losses: Losses, budget: float, *, moves: int = MOVES, seed: int = 0) -> Schedule:
    """The best that was found of all with that speed-up in MACs; the same at every call.

    Raises:
        RunError: not even one full step and the cheapest others have it.
    """
    starts = [schedule for _, schedule in uniform(losses, budget)]
    if not starts:
        starts = [Schedule(("full", *[losses.cheapest] * (losses.num_calls - 1)))]
        if losses.speed_up(starts[0].kinds) < budget:
            raise RunError(f"--budget {budget:g}x is out of reach: one full step alone comes to "
                           f"{losses.speed_up(starts[0].kinds):.2f}x")  # fmt: skip
    chance = random.Random(seed)
    found = [_anneal(losses, budget, start, moves, chance) for start in starts * TIMES]
    return min([*starts, *found], key=losses.total)


def _anneal(losses: Losses, budget: float, start: Schedule, moves: int, chance: random.Random) -> Schedule:
    most = losses.num_calls * losses.cost["full"] / budget
    now = best = start
    loss = least = first = losses.total(start)
    for move in range(moves):
        temperature = first * HOTTEST * (COLDEST / HOTTEST) ** (move / moves)
        other = moved(losses, now, chance)
        if losses.macs(other.kinds) > most:
            continue
        total = losses.total(other)
        if total <= loss or chance.random() < math.exp((loss - total) / max(temperature, 1e-300)):
            now, loss = other, total
            if loss < least:
                best, least = now, loss
    return best


def moved(losses: Losses, schedule: Schedule, chance: random.Random) -> Schedule:
    """Another kind for one step, the kinds of two steps exchanged, or another order; step 0 stays full."""
    kinds = list(schedule.kinds)
    i = chance.randrange(1, len(kinds))
    match chance.randrange(8):
        case 0 | 1 | 2:
            kinds[i] = chance.choice(losses.kinds)
        case 3 | 4:  # near one another
            j = min(max(i + chance.choice((-2, -1, 1, 2)), 1), len(kinds) - 1)
            kinds[i], kinds[j] = kinds[j], kinds[i]
        case 5 | 6:  # one dearer and one cheaper
            kinds[i], kinds[chance.randrange(1, len(kinds))] = chance.choice(losses.kinds), chance.choice(losses.kinds)
        case 7:
            if chance.random() < 0.5:
                return replace(schedule, forecast_order=chance.choice(ORDERS))
            return replace(schedule, skip_order=chance.choice(ORDERS))
    if any(kind == "full" for kind in kinds[losses.positions :]):
        return schedule
    found: tuple[Kind, ...] = tuple(kinds)
    return replace(schedule, kinds=found)
