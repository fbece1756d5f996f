"""Schedules to choose from, and their results on held-out images."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipelines.cache_options import CALIBRATED
from unets.cache.config import CacheConfig

from ..metrics.distances import psnr
from .baseline import Baseline
from .forecast_errors import Forecast, schedule_errors, schedule_weights
from .images import ImageMaker
from .measure import BranchMeasurement
from .search import best_schedule, total_error


@dataclass(frozen=True)
class Candidate:
    """A way to cache."""

    kind: str  # calibrated; or, with as many full steps, uniform or (given a forecast) calibrated for copies
    cache: CacheConfig
    speed_up: float  # in MACs of the U-Net, matrix products of attention counted
    predicted: float  # total error

    @property
    def branch(self) -> int:
        """m."""
        return self.cache.cache_branch_id

    @property
    def cache_steps(self) -> list[int]:
        """The full steps."""
        return list(self.cache.cache_steps or ())

    def to_json(self) -> dict[str, Any]:
        """The entries of a calibration file."""
        content = self.cache.to_json()
        return {
            "branch": self.branch,
            "kind": self.kind,
            "speed_up": self.speed_up,
            "predicted": self.predicted,
            "forecast": 0.0,
            **{name: content[name] for name in CALIBRATED if name in content and name != "cache_branch_id"},
        }


@dataclass(frozen=True)
class Trial(Candidate):
    """A candidate with the PSNR of its images to those with every step full, in dB, median over images."""

    psnr: float

    def to_json(self) -> dict[str, Any]:
        """As the parent's, with the PSNR."""
        return {**super().to_json(), "psnr": self.psnr}


def calibrated(measured: BranchMeasurement, k: int) -> Candidate:
    """The best schedule of k full steps."""
    steps, _ = measured.schedules[k - 1]
    return _candidate(measured, "calibrated", steps, measured.forecast)


def alternatives(measured: BranchMeasurement, candidate: Candidate) -> list[Candidate]:
    """Others with as many full steps: the uniform schedule, and with a forecast also the best one for copies."""
    k = len(candidate.cache_steps)
    constant = 1.0 if measured.forecast == "fit" else measured.forecast
    others = [_candidate(measured, "uniform", spread_evenly(measured.positions, k), constant)]
    if measured.forecast:
        steps, _ = best_schedule(measured.errors, k)
        others.append(_candidate(measured, "for copies", steps, measured.forecast))
    return [one for one in others if one.cache != candidate.cache]


def spread_evenly(positions: int, k: int) -> list[int]:
    """k full steps as evenly as possible; every N-th where k divides the number of positions."""
    return [i * positions // k for i in range(k)]


@torch.no_grad()
def try_out(candidate: Candidate, maker: ImageMaker, baseline: Baseline) -> Trial:
    """Makes the baseline's images with the candidate, and compares them."""
    label = f"m = {candidate.branch}, {len(candidate.cache_steps)} full steps"
    images = maker.make(baseline.indices, candidate.cache, label)
    return Trial(**vars(candidate), psnr=statistics.median(psnr(images, baseline.images).tolist()))


def _candidate(measured: BranchMeasurement, kind: str, steps: list[int], forecast: Forecast) -> Candidate:
    g: float | list[float] = (
        schedule_weights(measured.distances, steps, measured.num_images) if forecast == "fit" else float(forecast)
    )
    if forecast:
        weights = g if isinstance(g, list) else [g] * len(measured.distances)
        squares = schedule_errors(measured.distances, steps, weights)
        predicted = float((np.sqrt(squares) * measured.sensitivity).sum())
    else:
        predicted = total_error(measured.errors, steps)
    cache = CacheConfig(cache_branch_id=measured.branch, cache_steps=steps, forecast=g)
    return Candidate(kind, cache, measured.macs.speed_up(len(steps)), predicted)
