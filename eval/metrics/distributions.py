"""Distances between two sets of features, in bounded memory: the mathematics of eval.fid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
import torch
from scipy.special import xlogy
from torch import Tensor
from tqdm import tqdm

SPLIT = 5000  # images of one Inception Score
NEIGHBOURS = 3
ROWS, COLUMNS = 2048, 4096  # of one block of distances in float64, 64 MiB


@dataclass(frozen=True)
class Gaussian:
    """Mean (D,) and covariance (D, D) in float64."""

    mean: np.ndarray
    covariance: np.ndarray


class RunningGaussian:
    """Streaming mean and covariance of rows, a batch at a time, in float64.

    Sums of squares are of deviations from the mean so far, so that nothing cancels (Chan, Golub & LeVeque 1979).
    """

    def __init__(self, size: int) -> None:
        self.count = 0
        self.mean = np.zeros(size)
        self.squares = np.zeros((size, size))

    def update(self, rows: np.ndarray) -> None:
        """Takes rows (B, D)."""
        rows = rows.astype(np.float64)
        total = self.count + len(rows)
        mean = rows.mean(axis=0)
        shift = mean - self.mean
        between = np.sqrt(self.count * len(rows) / total) * shift  # as one row more, its square joins the product
        deviations = np.vstack([rows - mean, between])
        self.squares += deviations.T @ deviations
        self.mean += shift * (len(rows) / total)
        self.count = total

    def gaussian(self) -> Gaussian:
        """With the unbiased covariance, as `numpy.cov` has it."""
        return Gaussian(self.mean.copy(), self.squares / (self.count - 1))


class RunningInceptionScore:
    """exp of the mean KL(p(y|x) ‖ p(y)), p(y) being the mean over a split; the mean over splits, in order.

    Args:
        influences: keep what `influence` needs, including a split's probabilities.
    """

    def __init__(self, split: int = SPLIT, influences: bool = False) -> None:
        self.split = split
        self.influences = influences
        self.scores: list[float] = []
        self._influences: list[np.ndarray] = []  # of the splits
        self._begin()

    def _begin(self) -> None:
        self.count, self.negative_entropy, self.total = 0, 0.0, np.zeros(())
        self._parts: list[np.ndarray] = []

    def update(self, probabilities: np.ndarray) -> None:
        """Takes probabilities (B, C)."""
        while len(probabilities):
            room = self.split - self.count
            part, probabilities = probabilities[:room], probabilities[room:]
            self.negative_entropy += xlogy(part, part).sum()
            self.total = self.total + part.sum(axis=0)
            self.count += len(part)
            if self.influences:
                self._parts.append(part)
            if self.count == self.split:
                self.scores.append(self._score())
                if self.influences:
                    self._influences.append(self._influence())
                self._begin()

    def _score(self) -> float:
        marginal = self.total / self.count
        return float(np.exp(self.negative_entropy / self.count - xlogy(marginal, marginal).sum()))

    def value(self) -> float:
        """The mean over the splits, a last smaller one among them."""
        return float(np.mean([*self.scores, self._score()] if self.count else self.scores))

    def _influence(self) -> np.ndarray:
        """On the score of this split: score · (KL(p(y|x) ‖ p(y)) − its mean)."""
        marginal = self.total / self.count
        divergence = np.concatenate([(xlogy(part, part) - xlogy(part, marginal)).sum(axis=1) for part in self._parts])
        return self._score() * (divergence - divergence.mean())

    def influence(self) -> np.ndarray:
        """Of each image on the value, see `intervals` (N,). Needs `influences`."""
        splits = [*self._influences, self._influence()] if self.count else self._influences
        total = sum(len(part) for part in splits)
        # Every split counts the same, so an image of a small one counts for more.
        return np.concatenate([part * (total / (len(splits) * len(part))) for part in splits])


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½), in float64.

    The eigenvalues of Σ₁Σ₂ are the squared singular values of Σ₁^½ Σ₂^½, and these come out right for singular
    covariances too; so no ε is ever added to the diagonals, as implementations by a matrix square root have to.

    Raises:
        ValueError: different sizes, or numbers that are not finite.
    """
    if a.covariance.shape != b.covariance.shape:
        raise ValueError(f"Gaussians of {len(a.mean)} and {len(b.mean)} features; they are not of one network")
    if not all(np.isfinite(part).all() for g in (a, b) for part in (g.mean, g.covariance)):
        raise ValueError("a mean or covariance is not finite; are the features?")
    (values_a, vectors_a), (values_b, vectors_b) = (scipy.linalg.eigh(g.covariance) for g in (a, b))
    roots_a, roots_b = (np.sqrt(np.maximum(values, 0)) for values in (values_a, values_b))
    # Σ₁^½ Σ₂^½ without the outer rotations, which leave singular values as they are
    product = roots_a[:, None] * (vectors_a.T @ vectors_b) * roots_b
    trace = np.trace(a.covariance) + np.trace(b.covariance) - 2 * scipy.linalg.svdvals(product).sum()
    return float(np.square(a.mean - b.mean).sum() + trace)


def precision_recall(samples: np.ndarray, reference: np.ndarray, **options: Any) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019) of features (N, D) and (M, D).

    Precision is the share of the samples in any ball of the reference, recall the share of the reference in any ball
    of the samples; for the balls, the options and the errors see `inside_balls`.
    """
    inside_reference, inside_samples = inside_balls(samples, reference, **options)
    return float(inside_reference.mean()), float(inside_samples.mean())


def inside_balls(
    samples: np.ndarray,
    reference: np.ndarray,
    *,
    k: int = NEIGHBOURS,
    distances: str = "float64",
    device: str | torch.device = "cpu",
    quiet: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Which samples are in any ball of the reference (N,), and which of the reference in any of the samples' (M,).

    Around each point of a set is the ball that just reaches its k-th neighbour in the set. Distances are made in
    blocks: memory does not grow with N · M.

    Args:
        samples: features (N, D).
        reference: features (M, D).
        distances: precision of the squared distances. `float64`, or `float16` as OpenAI's evaluator has them: see
            `_evaluators_distances`.

    Raises:
        ValueError: a set of k points or fewer, or unknown `distances`.
    """
    if min(len(samples), len(reference)) <= k:
        raise ValueError(f"precision and recall need more than {k} images on both sides")
    if distances not in DISTANCES:
        raise ValueError(f"unknown distances {distances!r}; there are {', '.join(DISTANCES)}")
    dtype, squared = DISTANCES[distances]
    device = float64_device(device)
    a, b = (torch.from_numpy(np.ascontiguousarray(x)) for x in (samples, reference))
    rows = sum(-(-len(x) // ROWS) for x in (a, b, a))
    with tqdm(total=rows, desc="precision and recall", disable=quiet) as bar:
        radii_a, radii_b = (_radii(x, k, squared, dtype, device, bar) for x in (a, b))
        inside_b = torch.zeros(len(a), dtype=torch.bool)
        inside_a = torch.zeros(len(b), dtype=torch.bool)
        for i in range(0, len(a), ROWS):
            part = a[i : i + ROWS].to(device, dtype)
            for j in range(0, len(b), COLUMNS):
                block = squared(part, b[j : j + COLUMNS].to(device, dtype))
                inside_b[i : i + ROWS] |= (block <= radii_b[j : j + COLUMNS]).any(1).cpu()
                inside_a[j : j + COLUMNS] |= (block <= radii_a[i : i + ROWS, None]).any(0).cpu()
            bar.update()
    return inside_b.numpy(), inside_a.numpy()


def float64_device(device: str | torch.device) -> torch.device:
    """The device, or the CPU in place of one that has no float64."""
    return torch.device("cpu" if torch.device(device).type == "mps" else device)


def _radii(
    points: Tensor, k: int, squared: SquaredDistances, dtype: torch.dtype, device: torch.device, bar: tqdm
) -> Tensor:
    """Squared distance of each point to its k-th neighbour among the others (N,)."""
    radii = []
    for i in range(0, len(points), ROWS):
        part = points[i : i + ROWS].to(device, dtype)
        nearest = torch.empty(len(part), 0, device=device, dtype=dtype)
        for j in range(0, len(points), COLUMNS):
            block = squared(part, points[j : j + COLUMNS].to(device, dtype))
            candidates = torch.cat([nearest, block], 1)
            # k + 1, for a point is its own nearest, at distance 0
            nearest = candidates.topk(min(k + 1, candidates.shape[1]), largest=False).values
        radii.append(nearest.amax(1))
        bar.update()
    return torch.cat(radii)


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """(N, M) of (N, D) and (M, D) in float64."""
    squares = a.square().sum(1)[:, None] + b.square().sum(1)
    distances = torch.addmm(squares, a, b.T, alpha=-2)
    # What is left of equal points is rounding; it must not decide which of two duplicates is nearer.
    return distances.masked_fill_(distances < squares.mul_(1e-12), 0)


def _evaluators_distances(a: Tensor, b: Tensor) -> Tensor:
    """(N, M) of (N, D) and (M, D), as `DistanceBlock` in OpenAI's evaluator makes them, in float32.

    It casts the features to float16 and computes max(|u|² − 2 uᵀv + |v|², 0) in it, so every operation rounds to 11
    bits; a block that is not finite is computed in float32 instead. Not the same here: sums within |u|² and uᵀv are
    in float32 and rounded once, where TensorFlow's depend on the device; blocks are ours, not 10,000 × 10,000, which
    matters only past float16's 65,504.
    """
    u, v = a.half(), b.half()
    squares_u, squares_v = (x.square().float().sum(1).half() for x in (u, v))
    product = (u.float() @ v.float().T).half()
    distances = (squares_u[:, None] - 2 * product + squares_v).clamp(min=0)
    if distances.isfinite().all():
        return distances.float()
    return (a.square().sum(1)[:, None] - 2 * (a @ b.T) + b.square().sum(1)).clamp(min=0)


SquaredDistances = Callable[[Tensor, Tensor], Tensor]
DISTANCES: dict[str, tuple[torch.dtype, SquaredDistances]] = {
    "float64": (torch.float64, _squared_distances),
    "float16": (torch.float32, _evaluators_distances),
}
