"""The measurements of one branch on images made with every step full, and the best schedules by them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from common.command_line import RunError

from .baseline import Baseline
from .cost import StepMacs
from .forecast_errors import Forecast, forecast_errors, sensitivity, squared_distances
from .images import ImageMaker
from .search import all_forecast_schedules, all_schedules
from .step_errors import noise_errors


@dataclass(frozen=True, eq=False)
class BranchMeasurement:
    """A branch of a run of T calls, of which the first P can be full.

    Attributes:
        branch: m.
        macs: the cost of its steps.
        num_images: number of images it was measured on.
        forecast: the weight of the extrapolation, see `forecast_errors`; 0 copies features.
        errors: (P, T), how much the result changes if step j retrieves step i's feature.
        distances: (T, T), squared, between features; zeros without a forecast.
        sensitivity: (T,), how much the result changes with step j's feature; zeros without a forecast.
        schedules: for k = 1, …, P the best k full steps, and their total error.
    """

    branch: int
    macs: StepMacs
    num_images: int
    forecast: Forecast
    errors: np.ndarray
    distances: np.ndarray
    sensitivity: np.ndarray
    schedules: list[tuple[list[int], float]]

    @property
    def positions(self) -> int:
        """P."""
        return len(self.errors)


@torch.no_grad()
def measure_features(
    maker: ImageMaker, indices: range, baseline: Baseline, branch: int, distances: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The changes of the noise (T, T), see `noise_errors`, and if requested squared distances (T, T) between features.

    Both are means over the images of these indices. All features of a batch are in memory at once.

    Raises:
        RunError: the U-Net's output has non-finite values.
    """
    noise, between = np.zeros((2, len(baseline.calls), len(baseline.calls)))
    for batch in maker.batches(indices, f"errors, m = {branch}"):
        size = len(batch.indices)
        make = partial(maker.run.make, batch)
        moved, features = noise_errors(make, maker.run.unet, branch, size, baseline.guidance_scale)
        noise += size * moved
        if distances:
            between += size * squared_distances(features)
    noise /= len(indices)
    between /= len(indices)
    if not (np.isfinite(noise).all() and np.isfinite(between).all()):
        raise RunError("the U-Net's predictions have non-finite values; try --dtype float32")
    return noise, between


def measure_branch(
    maker: ImageMaker,
    indices: range,
    baseline: Baseline,
    branch: int,
    macs: StepMacs,
    forecast: Forecast = 0.0,
) -> BranchMeasurement:
    """Measures a branch on the images of these indices. Raises as `measure_features`."""
    noise, distances = measure_features(maker, indices, baseline, branch, distances=bool(forecast))
    positions = baseline.positions

    # Neighbouring steps retrieve the same feature and err in similar directions: lengths add up, not squares.
    errors = np.sqrt(noise[:positions]) * baseline.influence
    by_feature = np.sqrt(sensitivity(noise, distances)) * baseline.influence
    if forecast:
        squares = forecast_errors(distances, forecast, len(indices))[:positions, :positions]
        schedules = all_forecast_schedules(np.sqrt(squares) * by_feature)
    else:
        schedules = all_schedules(errors)
    return BranchMeasurement(branch, macs, len(indices), forecast, errors, distances, by_feature, schedules)
