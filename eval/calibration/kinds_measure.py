"""The measurements for `kinds.Losses`, and the resulting candidates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unets.cache.config import CacheConfig
from unets.cache.observe import observed_calls

from ..metrics.distances import psnr
from .baseline import Baseline
from .candidates import Candidate, Trial
from .cost import StepMacs
from .forecast_errors import sensitivity, squared_distances
from .goals import fastest_of_quality
from .images import ImageMaker
from .kinds import Kind, Losses, Schedule, uniform
from .kinds_search import best_schedule
from .measure import measure_features
from .refine import refine
from .step_errors import guided_noise


@dataclass(frozen=True, eq=False)
class Pair:
    """A branch to retrieve at, and a deeper one to refresh at or None."""

    branch: int
    refresh_branch: int | None
    losses: Losses
    reused: Mapping[str, Any]  # reuse_attention, reuse_guidance, where they are on

    def candidate(self, kind: str, schedule: Schedule) -> Candidate:
        """The schedule as a candidate."""
        cache = replace(schedule.cache(self.branch, self.refresh_branch, self.losses.forecast), **self.reused)
        return Candidate(kind, cache, self.losses.speed_up(schedule.kinds), self.losses.total(schedule))


@torch.no_grad()
def noise_distances(maker: ImageMaker, indices: range, baseline: Baseline) -> np.ndarray:
    """Squared distances (T, T) between the guided noises, which skipped steps extrapolate."""
    distances = np.zeros((len(baseline.calls), len(baseline.calls)))
    for batch in maker.batches(indices, "noises"):
        size, noises = len(batch.indices), list[Tensor]()

        def note(_: object, noise: Tensor, __: Tensor, size: int = size, noises: list[Tensor] = noises) -> None:
            noises.append(guided_noise(noise, size, baseline.guidance_scale))

        with observed_calls(maker.run.unet, 0, note):
            maker.run.make(batch)
        distances += size * squared_distances(noises) / len(indices)
    return distances


def all_pairs(
    maker: ImageMaker,
    indices: range,
    baseline: Baseline,
    macs: Mapping[int, StepMacs],
    refresh_macs: Mapping[int, StepMacs],
    skip: bool,
    forecast: float,
    reused: Mapping[str, Any],
) -> list[Pair]:
    """The measurements of every branch, each with every deeper branch to refresh at, if there are any.

    Args:
        macs: of the steps at each branch to retrieve at.
        refresh_macs: the same for each branch to refresh at, without attention reused.
        reused: what retrieve steps reuse besides features. Losses ignore the effect of that.
    """
    halves = 2 if reused.get("reuse_guidance") else 1  # retrieve steps run one of them
    measured: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for branch in dict.fromkeys([*macs, *refresh_macs]):
        noise, distances = measure_features(maker, indices, baseline, branch, distances=True)
        measured[branch] = distances, np.sqrt(sensitivity(noise, distances))
    noises = noise_distances(maker, indices, baseline) if skip else None
    pairs = []
    for branch in macs:
        deeper_ones: list[int | None] = [one for one in refresh_macs if one > branch]
        for deeper in deeper_ones or [None]:
            between: dict[Kind, np.ndarray] = {"retrieve": measured[branch][0]}
            moves: dict[Kind, np.ndarray] = {"retrieve": measured[branch][1]}
            cost: dict[Kind, int] = {"full": halves * macs[branch].full, "retrieve": macs[branch].retrieve, "skip": 0}
            if deeper is not None:
                between["refresh"], moves["refresh"] = measured[deeper]
                cost["refresh"] = halves * refresh_macs[deeper].retrieve
            if noises is not None:
                between["skip"] = noises
            losses = Losses(between, moves, baseline.influence, cost, forecast, baseline.positions)
            pairs.append(Pair(branch, deeper, losses, reused))
    return pairs


def best_kinds_within_budget(
    pairs: Sequence[Pair], budget: float, try_out: Callable[[Candidate], Trial]
) -> tuple[list[Trial], Trial]:
    """All trials (each pair's best and the uniform schedules), and the one with the highest PSNR.

    Raises:
        RunError: as `best_schedule`.
    """
    tried: dict[Candidate, Trial] = {}
    for pair in pairs:
        schedules = [("calibrated", best_schedule(pair.losses, budget)), *uniform(pair.losses, budget)]
        for kind, schedule in schedules:
            candidate = pair.candidate(kind, schedule)
            if all(candidate.cache != one.cache for one in tried):
                tried[candidate] = try_out(candidate)
    return list(tried.values()), max(tried.values(), key=lambda one: one.psnr)


def refined(
    pairs: Sequence[Pair],
    chosen: Trial,
    maker: ImageMaker,
    indices: range,
    runs: int,
    try_out: Callable[[Candidate], Trial],
) -> Trial:
    """The chosen schedule, refined by that many runs on the images of these indices."""
    deeper = chosen.cache.refresh_branch_id  # None without refresh steps, in which case any pair matches
    pair = next(one for one in pairs if one.branch == chosen.branch and deeper in (one.refresh_branch, None))
    baseline = maker.make(indices, CacheConfig(), "baseline")

    def quality(schedule: Schedule) -> float:
        images = maker.make(indices, pair.candidate("refined", schedule).cache, "refine")
        return float(psnr(images, baseline).mean())  # a mean gives the worst images more weight than a median

    schedule = Schedule.of(chosen.cache, pair.losses.num_calls)
    return try_out(pair.candidate("refined", refine(pair.losses, schedule, quality, runs, quiet=maker.quiet)))


def cheapest_kinds_of_quality(
    pairs: Sequence[Pair], psnr: float, try_out: Callable[[Candidate], Trial]
) -> tuple[list[Trial], Trial]:
    """All trials of a bisection in six halvings of the budget, and the fastest one with that PSNR.

    Raises:
        RunError: no schedule has that quality.
    """
    tried: list[Trial] = []
    for pair in pairs:
        fastest = ["full", *[pair.losses.cheapest] * (pair.losses.num_calls - 1)]
        least, most = 1.05, 0.999 * pair.losses.speed_up(fastest)
        for _ in range(6):
            budget = (least * most) ** 0.5
            tried.append(try_out(pair.candidate("calibrated", best_schedule(pair.losses, budget))))
            least, most = (budget, most) if tried[-1].psnr >= psnr else (least, budget)
    chosen = fastest_of_quality(tried, psnr)
    pair = next(one for one in pairs if one.branch == chosen.branch)
    others = [pair.candidate(*one) for one in uniform(pair.losses, chosen.speed_up)]
    return [*tried, *map(try_out, others)], chosen
