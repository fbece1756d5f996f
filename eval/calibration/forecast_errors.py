"""The error of extrapolating features from the last two full steps, from the distances between features alone.

A retrieve step j after the full steps k′ < k takes F_k + g u, u = (F_k − F_k′) · (j − k)/(k − k′), instead of F_j
(`unets.cache.features`). That is off by x − g u, x = F_j − F_k, and

    |x − g u|² = |x|² − 2 g ⟨x, u⟩ + g² |u|²
    ⟨F_j − F_k, F_k − F_k′⟩ = (|F_j − F_k′|² − |F_j − F_k|² − |F_k − F_k′|²) / 2

so that T²/2 distances give the error of all T³/6 triples, far too many to run the U-Net for.

All of these are means over images and elements. Before the second full step there is nothing to extrapolate from:
k′ = k = 0 stands for the copy of step 0's feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

NEAR = 10  # steps; of the values 1 to 100, one that works well for all shipped models
Forecast = float | Literal["fit"]  # g, or the best one for each triple; 0 copies


def squared_distances(features: Sequence[Tensor]) -> np.ndarray:
    """|F_i − F_j|² (T, T), means over all elements, of T features (rows, C, H, W) on one device.

    In float64, after subtracting each row's mean over the steps; otherwise rounding hides the distances of neighbours.
    """
    gram = np.zeros((len(features), len(features)))
    for row in range(len(features[0])):
        x = torch.stack([feature[row].flatten() for feature in features])
        x = (x.cpu() if x.device.type == "mps" else x).double()  # MPS has no float64
        x -= x.mean(dim=0)
        gram += (x @ x.T).cpu().numpy()
    squares = gram.diagonal()
    return (squares[:, None] + squares - 2 * gram).clip(0) / features[0].numel()


def sensitivity(noise_errors: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """How much step j's noise changes with its feature, (T,): the ratio of squares, by least squares over steps i < j.

    Args:
        noise_errors: (T, T), as `step_errors.noise_errors` measures them.
        distances: (T, T), squared.
    """
    factors = np.zeros(len(distances))
    for j in range(1, len(distances)):
        i = slice(max(0, j - NEAR), j)
        feature, noise = distances[i, j], noise_errors[i, j]
        if feature.any():
            factors[j] = feature @ noise / (feature @ feature)
    return factors


def fitted_weight(xx: np.ndarray, xu: np.ndarray, uu: np.ndarray, images: int) -> np.ndarray:
    """g that minimises |x − g u|² + λ (g − 1)², from |x|², ⟨x, u⟩ and |u|².

    λ corresponds to a normal prior of g with mean 1 and variance 1, if each image observes g once with the residual as
    its variance: λ = min |x − g u|² / images. So g is 1 where features don't change.
    """
    residual = xx - np.divide(xu**2, uu, out=np.zeros_like(uu), where=uu > 0)
    ridge = residual.clip(0) / images
    return np.divide(xu + ridge, uu + ridge, out=np.ones_like(uu), where=uu + ridge > 0)


def forecast_errors(distances: np.ndarray, forecast: Forecast, images: int) -> np.ndarray:
    """|x − g u|² at [k′, k, j] for k′ < k < j, and that of the copy at [0, 0, j]; 0 elsewhere. (T, T, T) float64.

    Args:
        distances: (T, T), squared.
        forecast: g, or "fit" for each triple's `fitted_weight`.
        images: how many images the distances are from.
    """
    steps = np.arange(len(distances))
    error = np.zeros((len(steps),) * 3)
    error[0, 0] = distances[0]
    for before in steps[:-2]:
        k = steps[before + 1 : -1]
        products = _products(distances, before, k[:, None], steps)
        error[before, k] = np.where(steps > k[:, None], _error(_weight(forecast, *products, images), *products), 0)
    return error


def schedule_weights(distances: np.ndarray, steps: Sequence[int], images: int) -> list[float]:
    """The `fitted_weight` of each step (T,) in a run with these full steps, 0 where nothing is extrapolated."""
    weights = [0.0] * len(distances)
    for before, k, j in _triples(steps, len(distances)):
        if before < k < j:
            weight = _weight("fit", *_products(distances, before, np.array([k]), np.array([j])), images)
            weights[j] = round(float(weight[0]), 4)
    return weights


def schedule_errors(distances: np.ndarray, steps: Sequence[int], weights: Sequence[float]) -> np.ndarray:
    """|x − g u|² of each step (T,) in a run with these full steps and g, 0 at full steps."""
    errors = distances[0].copy()
    for before, k, j in _triples(steps, len(distances)):
        if before < k:
            errors[j] = _error(np.array(weights[j]), *_products(distances, before, np.array([k]), np.array([j])))[0]
    return errors


def _products(
    distances: np.ndarray, before: int, k: np.ndarray, j: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """|x|², ⟨x, u⟩ and |u|², for k and j that are broadcast."""
    scale = (j - k) / (k - before)
    xx, yy = distances[k, j], distances[before, k]
    return xx, scale * (distances[before, j] - xx - yy) / 2, scale**2 * yy


def _weight(forecast: Forecast, xx: np.ndarray, xu: np.ndarray, uu: np.ndarray, images: int) -> np.ndarray:
    return fitted_weight(xx, xu, uu, images) if forecast == "fit" else np.array(float(forecast))


def _error(weight: np.ndarray, xx: np.ndarray, xu: np.ndarray, uu: np.ndarray) -> np.ndarray:
    return (xx - 2 * weight * xu + weight**2 * uu).clip(0)


def _triples(steps: Sequence[int], num_steps: int) -> list[tuple[int, int, int]]:
    """k′, k and j for each step j of a run; k is j at a full step."""
    triples, before, k = [], 0, 0
    for j in range(num_steps):
        before, k = (k, j) if j in steps else (before, k)
        triples.append((before, k, j))
    return triples
