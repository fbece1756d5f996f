"""The best schedule for a goal: the closest to the baseline within a budget, or the cheapest with a quality."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence

from common.command_line import RunError

from .candidates import Candidate, Trial, alternatives, calibrated
from .cost import StepMacs
from .measure import BranchMeasurement

TryOut = Callable[[Candidate], Trial]


def branches_within_budget(macs: Mapping[int, StepMacs], positions: int, budget: float) -> list[int]:
    """The branches at which a run can reach that reduction of MACs. Raises ValueError if there is none."""
    found = [branch for branch, steps in macs.items() if steps.most_full_steps(budget, positions)]
    if not found:
        most = max(steps.speed_up(1) for steps in macs.values())
        raise ValueError(f"--budget {budget:g}x is out of reach: with one full step these branches reach {most:.2f}x")
    return found


def best_within_budget(
    branches: Sequence[BranchMeasurement], budget: float, try_out: TryOut
) -> tuple[list[Trial], Trial]:
    """All trials, and the one with the highest PSNR.

    Args:
        branches: `branches_within_budget`. Each has as many full steps as the budget allows.
    """
    tried: list[Trial] = []
    for measured in branches:
        candidate = calibrated(measured, measured.macs.most_full_steps(budget, measured.positions))
        tried += map(try_out, [candidate, *alternatives(measured, candidate)])
    return tried, max(tried, key=lambda one: one.psnr)


def cheapest_of_quality(
    branches: Sequence[BranchMeasurement], psnr: float, try_out: TryOut
) -> tuple[list[Trial], Trial]:
    """All trials, and among the calibrated schedules with that PSNR the one with the fewest MACs.

    Raises:
        RunError: no schedule has that quality.
    """
    tried: list[Trial] = []
    for measured in branches:
        tried += _bisect(measured, psnr, try_out)
    chosen = fastest_of_quality(tried, psnr)
    measured = next(one for one in branches if one.branch == chosen.branch)
    return [*tried, *map(try_out, alternatives(measured, chosen))], chosen


def fastest_of_quality(tried: Sequence[Trial], psnr: float) -> Trial:
    """The trial with the fewest MACs among those with that PSNR. Raises RunError if there is none."""
    good = [one for one in tried if one.psnr >= psnr]
    if not good:
        best = max(one.psnr for one in tried)
        raise RunError(f"no schedule reaches --quality {psnr:g}; the best that was tried has {best:.1f} dB")
    return max(good, key=lambda one: one.speed_up)


def least_k(enough: Callable[[int], bool], most: int) -> int | None:
    """The least k from 1 to `most` that is enough, if being enough is monotonic; None if none is."""
    k = 1 + bisect_left(range(1, most + 1), True, key=enough)
    return k if k <= most else None


def _bisect(measured: BranchMeasurement, psnr: float, try_out: TryOut) -> list[Trial]:
    """The trials of a bisection for the fewest full steps with that PSNR."""
    tried: list[Trial] = []

    def enough(k: int) -> bool:
        tried.append(try_out(calibrated(measured, k)))
        return tried[-1].psnr >= psnr

    least_k(enough, measured.positions - 1)
    return tried
