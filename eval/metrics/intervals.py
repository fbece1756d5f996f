"""How certain a score of a set of images is: standard errors, 95 % intervals, and replicates that can be paired.

A score's influence function gives, for each image, how much the score would change with more weight on that image:
score of a resample ≈ score + mean of the influences of the images drawn. The standard error follows from it without
resampling (the infinitesimal jackknife; Efron 1982), and so do replicates, at no more than a sum each.

Resampling FID itself is worse. A resample has about 63 % of the images, and FID's bias grows as their number falls: in
the rows of 256 images and 128 features below, the replicates' mean is 0.37 above the estimate, so that a percentile
interval can miss it, and their spread is too large. Standard deviations measured over independent sets of Gaussian
features, reference of 2,000; what each method says, divided by the true one:

| features, images | FID | true bias of it | resampled | influence | resampled, paired | influence, paired |
|---|---|---|---|---|---|---|
| 32, 256 | 0.85 | 0.11 | 1.08 | 1.05 | 1.06 | 1.02 |
| 128, 256 | 1.71 | 0.43 | 1.16 | 1.09 | 0.98 | 0.98 |
| 128, 256 | 0.54 | 0.43 | 1.83 | 1.26 | 1.19 | 1.09 |
| 128, 256 | 0.43 | 0.43 | 2.56 | 1.35 | 1.32 | 1.16 |
| 128, 1024 | 0.25 | 0.14 | 1.16 | 1.02 | 1.02 | 1.00 |

So intervals are right, and too wide where FID is hardly more than its bias. Over 29 sets of 256 drawn scenes, in the
features of `shapes`, the influences say 1.05 of the true deviation of FID and 1.18 of that of KID. All intervals are
conditional on the reference, and of the expected score of that many images: the bias is in it, and cancels between
sets of one size where it is the same for both.
"""

from __future__ import annotations

import numpy as np
import torch

from .distributions import ROWS, Gaussian, float64_device

REPLICATES = 100
SEED = 20_231_201
Z95 = 1.96  # standard errors on either side of a 95 % interval


def frechet_influence(
    rows: np.ndarray, own: Gaussian, base: Gaussian, *, device: str | torch.device = "cpu"
) -> np.ndarray:
    """Of FID or sFID: for each image, in FID's units (N,).

    With d = x − μ₁ and T the optimal transport map from Σ₁ to Σ₂, the gradient of the Fréchet distance at (μ₁, Σ₁) is
    2 (μ₁ − μ₂)ᵀd + dᵀ(I − T)d − tr((I − T)Σ₁). Of 5,000 × 2,048 features it takes 12 s on one CPU core, where each
    resample would take 4 to 6 s.

    Args:
        rows: features (N, D).
        own: the Gaussian of these rows.
        base: the reference's.
    """
    device = float64_device(device)
    mean, shift, covariance, target = (
        torch.from_numpy(part).to(device) for part in (own.mean, own.mean - base.mean, own.covariance, base.covariance)
    )
    values, vectors = torch.linalg.eigh(target)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    values, vectors = torch.linalg.eigh(root @ covariance @ root)
    # T = Σ₂^½ (Σ₂^½ Σ₁ Σ₂^½)^-½ Σ₂^½; where the product is singular, the set does not vary and T has nothing to move
    regular = values > values.amax() * len(values) * torch.finfo(torch.float64).eps
    half = (root @ vectors[:, regular]) * values[regular] ** -0.25
    parts = []
    for start in range(0, len(rows), ROWS):
        d = torch.from_numpy(rows[start : start + ROWS]).to(device, torch.float64) - mean
        parts.append((2 * (d @ shift) + d.square().sum(1) - (d @ half).square().sum(1)).cpu())
    influence = torch.cat(parts).numpy()
    return influence - influence.mean()


def standard_error(influence: np.ndarray) -> float | None:
    """Of a score whose images have that influence (N,); None for one image."""
    return float(influence.std(ddof=1) / len(influence) ** 0.5) if len(influence) > 1 else None


def replicates(
    estimates: dict[str, float], influences: dict[str, np.ndarray], number: int = REPLICATES
) -> dict[str, list[float]]:
    """Scores of `number` resamples, by the influences of the images drawn.

    The images of the b-th resample depend on b and the number of images alone. So for two sets that were made from
    the same noise, the differences of their b-th replicates are replicates of the difference.

    Args:
        estimates: the scores.
        influences: of the same scores, each (N,); N may differ between them.
    """
    result: dict[str, list[float]] = {name: [] for name in influences}
    for size in sorted({len(influence) for influence in influences.values()}):
        rng = np.random.default_rng(SEED)
        for _ in range(number):
            drawn = rng.integers(0, size, size)
            for name, influence in influences.items():
                if len(influence) == size:
                    result[name].append(float(estimates[name] + influence[drawn].mean()))
    return result
