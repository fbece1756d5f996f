"""FID, sFID, Inception Score, precision and recall of a set of images against a reference.

python -m eval.fid samples.npz VIRTUAL_imagenet256_labeled.npz --variant adm            as the tables for LDM-4-G
python -m eval.fid samples/ cifar10-reference.npz --variant pytorch-fid                 as the tables for DDPM
python -m eval.fid samples/ drawn/ --variant shapes                     pictures of the shipped models, no download

Both are folders, .npz or .pt; the reference can also be an .npz of statistics: OpenAI's, pytorch-fid's, or one that
`python -m eval.reference` made.
"""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import torch
from scipy.special import xlogy
from torch import Tensor
from tqdm import tqdm

from .arguments import Formatter, at_least, device_and_dtype, exit_status
from .features import VARIANTS, Extractor, open_extractor
from .files import written_aside
from .inception import Features
from .read_images import Source, count_images, image_batches

SPLIT = 5000  # images of one Inception Score
NEIGHBOURS = 3
REFERENCE_FEATURES = 10_000  # for precision and recall, as many as OpenAI's references have images
ROWS, COLUMNS = 2048, 4096  # of one block of distances in float64, 64 MiB


@dataclass(frozen=True)
class Gaussian:
    """Mean (D,) and covariance (D, D) in float64."""

    mean: np.ndarray
    covariance: np.ndarray


class RunningGaussian:
    """Mean and covariance of rows that come a batch at a time, in float64.

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
    """exp of the mean KL(p(y|x) ‖ p(y)), p(y) being the mean over a split; the mean over splits, in order."""

    def __init__(self, split: int = SPLIT) -> None:
        self.split = split
        self.scores: list[float] = []
        self._begin()

    def _begin(self) -> None:
        self.count, self.negative_entropy, self.total = 0, 0.0, np.zeros(())

    def update(self, probabilities: np.ndarray) -> None:
        """Takes probabilities (B, C)."""
        while len(probabilities):
            room = self.split - self.count
            part, probabilities = probabilities[:room], probabilities[room:]
            self.negative_entropy += xlogy(part, part).sum()
            self.total = self.total + part.sum(axis=0)
            self.count += len(part)
            if self.count == self.split:
                self.scores.append(self._score())
                self._begin()

    def _score(self) -> float:
        marginal = self.total / self.count
        return float(np.exp(self.negative_entropy / self.count - xlogy(marginal, marginal).sum()))

    def value(self) -> float:
        """The mean over the splits, a last smaller one among them."""
        return float(np.mean([*self.scores, self._score()] if self.count else self.scores))


@dataclass(frozen=True)
class Statistics:
    """What is known of a set of images. `features` are pooled ones (N, D), for precision and recall."""

    pooled: Gaussian
    spatial: Gaussian | None = None
    features: np.ndarray | None = None
    count: int | None = None
    inception_score: float | None = None


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


def precision_recall(
    samples: np.ndarray,
    reference: np.ndarray,
    *,
    k: int = NEIGHBOURS,
    device: str | torch.device = "cpu",
    quiet: bool = True,
) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019) of features (N, D) and (M, D).

    Around each point of a set is the ball that just reaches its k-th neighbour in the set. Precision is the share of
    the samples in any ball of the reference, recall the share of the reference in any ball of the samples.
    Distances are made in float64, in blocks: memory does not grow with N · M.

    Raises:
        ValueError: a set of k points or fewer.
    """
    if min(len(samples), len(reference)) <= k:
        raise ValueError(f"precision and recall need more than {k} images on both sides")
    device = torch.device("cpu" if torch.device(device).type == "mps" else device)  # MPS has no float64
    a, b = (torch.from_numpy(np.ascontiguousarray(x)) for x in (samples, reference))
    rows = sum(-(-len(x) // ROWS) for x in (a, b, a))
    with tqdm(total=rows, desc="precision and recall", disable=quiet) as bar:
        radii_a, radii_b = (_radii(x, k, device, bar) for x in (a, b))
        inside_b = torch.zeros(len(a), dtype=torch.bool)
        inside_a = torch.zeros(len(b), dtype=torch.bool)
        for i in range(0, len(a), ROWS):
            part = a[i : i + ROWS].to(device, torch.float64)
            for j in range(0, len(b), COLUMNS):
                distances = _squared_distances(part, b[j : j + COLUMNS].to(device, torch.float64))
                inside_b[i : i + ROWS] |= (distances <= radii_b[j : j + COLUMNS]).any(1).cpu()
                inside_a[j : j + COLUMNS] |= (distances <= radii_a[i : i + ROWS, None]).any(0).cpu()
            bar.update()
    return inside_b.double().mean().item(), inside_a.double().mean().item()


def _radii(points: Tensor, k: int, device: torch.device, bar: tqdm) -> Tensor:
    """Squared distance of each point to its k-th neighbour among the others (N,)."""
    radii = []
    for i in range(0, len(points), ROWS):
        part = points[i : i + ROWS].to(device, torch.float64)
        nearest = torch.empty(len(part), 0, device=device, dtype=torch.float64)
        for j in range(0, len(points), COLUMNS):
            distances = _squared_distances(part, points[j : j + COLUMNS].to(device, torch.float64))
            # k + 1, for a point is its own nearest, at distance 0
            nearest = torch.cat([nearest, distances], 1).topk(min(k + 1, nearest.shape[1] + distances.shape[1]),
                                                              largest=False).values  # fmt: skip
        radii.append(nearest.amax(1))
        bar.update()
    return torch.cat(radii)


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """(N, M) of (N, D) and (M, D) in float64."""
    squares = a.square().sum(1)[:, None] + b.square().sum(1)
    distances = torch.addmm(squares, a, b.T, alpha=-2)
    # What is left of equal points is rounding; it must not decide which of two duplicates is nearer.
    return distances.masked_fill_(distances < squares.mul_(1e-12), 0)


def measure(
    source: Source,
    extractor: Extractor,
    *,
    batch_size: int = 64,
    limit: int | None = None,
    size: int | None = None,
    keep: int | None = 0,
    quiet: bool = False,
) -> Statistics:
    """Statistics of a set of images in one pass; `keep` says for how many of them features are kept (None: all).

    Raises:
        ValueError: fewer than two images, features that are not finite, or what `image_batches` raises.
    """
    name = "the array" if isinstance(source, np.ndarray) else str(source)
    total = count_images(source)
    total = total if limit is None else min(limit, total)
    if total < 2:
        raise ValueError(f"{name} has {total} image; a covariance needs at least 2")
    pooled, spatial = (RunningGaussian(n) for n in extractor.sizes)
    score = RunningInceptionScore()
    kept: list[np.ndarray] = []
    with tqdm(total=total, desc=name, unit="image", disable=quiet) as bar:
        for batch in image_batches(source, batch_size, limit, size=size):
            features = _finite(extractor(batch), name, bar.n)
            kept.append(features.pooled[: None if keep is None else max(0, keep - bar.n)])
            pooled.update(features.pooled)
            spatial.update(features.spatial)
            score.update(features.probabilities)
            bar.update(len(batch))
    features = np.concatenate(kept)
    return Statistics(pooled.gaussian(), spatial.gaussian(), features if len(features) else None, total, score.value())


def _finite(features: Features, name: str, start: int) -> Features:
    for part in features:
        if not (good := np.isfinite(part).all(axis=1)).all():
            raise ValueError(
                f"the features of image {start + int(np.argmin(good))} of {name} are not finite; "
                "check the network's weights"
            )
    return features


def load_reference(reference: Source, extractor: Extractor, *, batch_size: int = 64, quiet: bool = False) -> Statistics:
    """Statistics of a reference: stored ones as they are, else measured.

    An `.npz` with `mu` and `sigma` is one of statistics. `mu_s` and `sigma_s` are the spatial ones; for precision and
    recall it can have pooled `features` or images, `arr_0`.

    Raises:
        ValueError: statistics of another variant or network, incomplete or damaged ones; or what `measure` raises.
    """
    stored = _stored(reference)
    if stored is None:
        return measure(reference, extractor, batch_size=batch_size, keep=REFERENCE_FEATURES, quiet=quiet)
    # Files that say nothing: spatial statistics are OpenAI's; without them both preparations are in use.
    if "variant" in stored:
        variants = [str(stored["variant"])]
    else:
        variants = ["adm"] if "mu_s" in stored else ["adm", "pytorch-fid"]
    if extractor.variant not in variants:
        raise ValueError(
            f"{reference} has statistics of the variant {' or '.join(variants)}, not of {extractor.variant}; "
            f"pass --variant {variants[0]} or another reference"
        )
    if "weights" in stored and str(stored["weights"]) != extractor.weights:
        raise ValueError(f"{reference} was made with other weights of the network; make it again with these")
    pooled = _gaussian(stored, reference, "mu", "sigma", extractor.sizes[0])
    spatial = _gaussian(stored, reference, "mu_s", "sigma_s", extractor.sizes[1]) if "mu_s" in stored else None
    features = stored.get("features")
    if features is None and "arr_0" in stored:
        batches = image_batches(reference, batch_size, REFERENCE_FEATURES)
        bar = tqdm(batches, desc=f"{reference}: arr_0", unit="batch", disable=quiet)
        features = np.concatenate([_finite(extractor(b), str(reference), k * batch_size).pooled
                                   for k, b in enumerate(bar)])  # fmt: skip
    return Statistics(pooled, spatial, features, int(stored["count"]) if "count" in stored else None)


def _stored(reference: Source) -> dict[str, Any] | None:
    """The arrays of an `.npz` of statistics, without its images; None if the reference is not one."""
    if isinstance(reference, np.ndarray) or not (path := Path(reference)).is_file() or path.suffix != ".npz":
        return None
    try:
        with np.load(path) as file:
            if "mu" not in file and "sigma" not in file:
                return None
            return {name: None if name == "arr_0" else file[name] for name in file.files}
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError) as error:
        raise ValueError(f"cannot read {path}: {error}; is the file whole?") from None


def _gaussian(stored: dict[str, Any], reference: Source, mean: str, covariance: str, size: int) -> Gaussian:
    shapes = [np.shape(stored.get(name)) for name in (mean, covariance)]
    if shapes != [(size,), (size, size)]:
        raise ValueError(
            f"{mean} and {covariance} of {reference} are {shapes[0]} and {shapes[1]}, not of {size} features"
        )
    return Gaussian(*(np.asarray(stored[name], np.float64) for name in (mean, covariance)))


def compute(
    samples: Source,
    reference: Source,
    *,
    variant: str = "adm",
    extractor: Extractor | None = None,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    batch_size: int = 64,
    limit: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """FID, sFID, Inception Score, precision and recall of images against a reference.

    Args:
        variant: network and preparation of its input: `adm`, `pytorch-fid` or `shapes`.
        extractor: of that variant, to use again; by default one is opened with `weights` on `device`.
        limit: no more samples than this.

    Returns:
        variant, weights (SHA-256), num_samples, num_reference, fid, sfid, is, precision, recall, warnings. None where
        the reference does not have what is needed: spatial statistics for sfid, images or features for the last two.

    Raises:
        ValueError: sources that can't be used, see `measure` and `load_reference`.
        RunError: weights that can't be had.
    """
    extractor = extractor or open_extractor(variant, weights, device, quiet)
    if extractor.variant != variant:
        raise ValueError(f"the extractor is of the variant {extractor.variant}, not {variant}")
    count_images(samples)  # before the reference is measured, which can take long
    base = load_reference(reference, extractor, batch_size=batch_size, quiet=quiet)
    balls = base.features is not None and len(base.features) > NEIGHBOURS
    own = measure(samples, extractor, batch_size=batch_size, limit=limit, keep=None if balls else 0, quiet=quiet)
    assert own.count is not None and own.spatial is not None
    precision = recall = None
    if base.features is not None and own.features is not None and len(own.features) > NEIGHBOURS:
        precision, recall = precision_recall(own.features, base.features, device=device, quiet=quiet)
    size = extractor.sizes[0]
    few = {"samples": own.count, "reference": base.count}
    return {
        "variant": variant,
        "weights": extractor.weights,
        "num_samples": own.count,
        "num_reference": base.count,
        "fid": frechet_distance(own.pooled, base.pooled),
        "sfid": None if base.spatial is None else frechet_distance(own.spatial, base.spatial),
        "is": own.inception_score,
        "precision": precision,
        "recall": recall,
        "warnings": [
            f"{count} images of the {side} for {size} features: the covariance is singular and FID far too large"
            for side, count in few.items()
            if count is not None and count <= size
        ],
    }


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m eval.fid", description=__doc__, formatter_class=Formatter)
    p.add_argument("samples", type=Path, metavar="SAMPLES", help="folder, .npz or .pt of images")
    p.add_argument("reference", type=Path, metavar="REFERENCE", help="the same, or an .npz of statistics")
    p.add_argument("--limit", type=int, help="no more samples than this")
    add_extractor_arguments(p)
    p.add_argument("--out", type=Path, metavar="FILE", help="write the result to this JSON file")
    return p


def add_extractor_arguments(p: argparse.ArgumentParser) -> None:
    """Those of eval.reference too."""
    p.add_argument("--variant", choices=VARIANTS, default="adm", help="network, and how its input is prepared")
    p.add_argument(
        "--weights", type=Path, metavar="FILE",
        help="weights of the Inception network (default: the published ones, from torch.hub's cache or downloaded)",
    )  # fmt: skip
    p.add_argument("--batch-size", type=int, default=64)
    p.add_argument("--device", help="cuda, mps or cpu (default: the first of them that is there)")
    p.add_argument("--quiet", action="store_true", help="no progress bars")


def extractor_of(args: argparse.Namespace) -> tuple[Extractor, torch.device]:
    """What the arguments above ask for."""
    at_least(args, batch_size=1, limit=2)
    device, _ = device_and_dtype(argparse.Namespace(device=args.device, dtype="float32", cpu_offload=False))
    return open_extractor(args.variant, args.weights, device, args.quiet), device


def work(args: argparse.Namespace) -> None:
    for source in (args.samples, args.reference):
        if not source.exists():
            raise ValueError(f"there is no {source}; give a folder of images, an .npz or a .pt")
    extractor, device = extractor_of(args)

    def run() -> dict[str, Any]:
        settings = {"samples": str(args.samples), "reference": str(args.reference)}
        return settings | compute(
            args.samples, args.reference, variant=args.variant, extractor=extractor, device=device,
            batch_size=args.batch_size, limit=args.limit, quiet=args.quiet,
        )  # fmt: skip

    if args.out:
        with written_aside(args.out) as aside:
            result = run()
            aside.write_text(json.dumps(result, indent=1) + "\n")
    else:
        result = run()
    for warning in result["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{result['num_samples']} images, variant {args.variant}")
    for name in ("fid", "sfid", "is", "precision", "recall"):
        print(f"{name:<10}" + ("not available for this reference" if result[name] is None else f"{result[name]:.4f}"))


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return exit_status(lambda: work(args))


if __name__ == "__main__":
    sys.exit(main())
