"""FID, sFID, KID, Inception Score, precision, recall: statistics of sets of images, made, stored and compared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from common.arrays import NpzFile
from common.files import atomic_write
from image_sets.reading import Source, count_images, image_batches

from .distributions import (
    DISTANCES,
    NEIGHBOURS,
    SPLIT,
    Gaussian,
    RunningGaussian,
    RunningInceptionScore,
    frechet_distance,
    inside_balls,
)
from .features import Extractor, open_extractor
from .inception import Features
from .intervals import REPLICATES, frechet_influence, replicates, standard_error
from .kid import kid

METRICS = ("fid", "sfid", "is", "precision", "recall", "kid")
BALLS = ("precision", "recall")
STORED = ("mu", "sigma", "mu_s", "sigma_s", "features", "count", "variant", "weights")
REFERENCE_FEATURES = 10_000  # for KID, precision and recall, as many as OpenAI's references have images


@dataclass(frozen=True)
class Statistics:
    """Statistics of a set of images.

    `features` are pooled ones (N, D), for KID, precision and recall; `spatial_features` (N, S) and `score_influence`
    (N,), that of the Inception Score, are for standard errors. `classes` is how many the Inception Score tells apart.
    """

    pooled: Gaussian
    spatial: Gaussian | None = None
    features: np.ndarray | None = None
    count: int | None = None
    inception_score: float | None = None
    classes: int | None = None
    spatial_features: np.ndarray | None = None
    score_influence: np.ndarray | None = None


def measure(
    source: Source,
    extractor: Extractor,
    *,
    batch_size: int = 64,
    limit: int | None = None,
    size: int | None = None,
    keep: int | None = 0,
    influences: bool = False,
    quiet: bool = False,
) -> Statistics:
    """Statistics of a set of images in one pass.

    Args:
        keep: for how many of the images pooled features are kept (None: all).
        influences: keep the spatial features of all images and the influences on the Inception Score too.

    Raises:
        ValueError: fewer than two images, features that are not finite, or what `image_batches` raises.
    """
    name = "the array" if isinstance(source, np.ndarray) else str(source)
    total = count_images(source)
    total = total if limit is None else min(limit, total)
    if total < 2:
        raise ValueError(f"{name} has {total} image; a covariance needs at least 2")
    pooled, spatial = (RunningGaussian(n) for n in extractor.sizes)
    score = RunningInceptionScore(influences=influences)
    kept: list[np.ndarray] = []
    kept_spatial: list[np.ndarray] = []
    classes = 0
    with tqdm(total=total, desc=name, unit="image", disable=quiet) as bar:
        for batch in image_batches(source, batch_size, limit, size=size):
            features = _finite(extractor(batch), name, pooled.count)
            kept.append(features.pooled[: None if keep is None else max(0, keep - pooled.count)])
            if influences:
                kept_spatial.append(features.spatial)
            classes = features.probabilities.shape[1]
            pooled.update(features.pooled)
            spatial.update(features.spatial)
            score.update(features.probabilities)
            bar.update(len(batch))
    rows = np.concatenate(kept)
    return Statistics(
        pooled.gaussian(),
        spatial.gaussian(),
        features=rows if len(rows) else None,
        count=total,
        inception_score=score.value(),
        classes=classes,
        spatial_features=np.concatenate(kept_spatial) if influences else None,
        score_influence=score.influence() if influences else None,
    )


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

    An `.npz` with `mu` and `sigma` is one of statistics. `mu_s` and `sigma_s` are the spatial ones; for KID, precision
    and recall it can have pooled `features` or images, `arr_0`.

    Raises:
        ValueError: statistics of another variant or network, incomplete or damaged ones; or what `measure` raises.
    """
    stored = _stored(reference)
    if stored is None:
        return measure(reference, extractor, batch_size=batch_size, keep=REFERENCE_FEATURES, quiet=quiet)
    # Files without a variant: with spatial statistics they are OpenAI's; without them either variant is possible.
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
    features = _numbers(stored, reference, "features") if "features" in stored else None
    if features is not None and (features.ndim != 2 or features.shape[1] != extractor.sizes[0]):
        raise ValueError(f"features of {reference} are {features.shape}, not {extractor.sizes[0]} of each image")
    if features is None and "arr_0" in stored:
        batches = image_batches(reference, batch_size, REFERENCE_FEATURES)
        bar = tqdm(batches, desc=f"{reference}: arr_0", unit="batch", disable=quiet)
        features = np.concatenate([_finite(extractor(b), str(reference), k * batch_size).pooled
                                   for k, b in enumerate(bar)])  # fmt: skip
    count = None
    if "count" in stored:
        if (number := _numbers(stored, reference, "count")).size != 1:
            raise ValueError(f"count of {reference} is {number.shape}, not one number; make the reference again")
        count = int(number.item())
    return Statistics(pooled, spatial, features, count)


def _stored(reference: Source) -> dict[str, Any] | None:
    """The arrays of an `.npz` of statistics, without its images; None if the reference is not one."""
    if isinstance(reference, np.ndarray) or not (path := Path(reference)).is_file() or path.suffix != ".npz":
        return None
    with NpzFile(path) as file:
        names = set(file.names())
        if not names & {"mu", "sigma"}:
            return None
        stored: dict[str, Any] = {name: file.read(name) for name in STORED if name in names}
    return stored | ({"arr_0": None} if "arr_0" in names else {})


def _numbers(stored: dict[str, Any], reference: Source, name: str) -> np.ndarray:
    """An array of the statistics. Raises ValueError if it holds anything but finite numbers."""
    array = stored.get(name, np.zeros(()))
    if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise ValueError(f"{name} of {reference} holds values that are not finite numbers; make the reference again")
    return array


def _gaussian(stored: dict[str, Any], reference: Source, mean: str, covariance: str, size: int) -> Gaussian:
    arrays = [_numbers(stored, reference, name) for name in (mean, covariance)]
    shapes = [array.shape for array in arrays]
    if shapes != [(size,), (size, size)]:
        raise ValueError(
            f"{mean} and {covariance} of {reference} are {shapes[0]} and {shapes[1]}, not of {size} features"
        )
    return Gaussian(*(np.asarray(array, np.float64) for array in arrays))


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
    distances: str = "float64",
    num_replicates: int = REPLICATES,
    quiet: bool = False,
) -> dict[str, Any]:
    """FID, sFID, Inception Score, precision, recall and KID of images against a reference.

    Args:
        variant: network and preparation of its input: `adm`, `pytorch-fid` or `shapes`.
        extractor: of that variant, to use again; by default one is opened with `weights` on `device`.
        limit: no more samples than this.
        distances: of precision and recall, `float64` or `float16`, see `inside_balls`.
        num_replicates: see `intervals`; 0: neither replicates nor standard errors, and no more features in memory
            than KID, precision and recall need.

    Returns:
        variant, weights (SHA-256), num_samples, num_reference, distances; the metrics fid, sfid, is, precision, recall
        and kid, None if unavailable; if `distances` are rounded, exact_precision and exact_recall;
        kid_spread and kid_subset_size, see `Kid`. By metric:
        standard_errors: floats, None where there is none. Conditional on the reference; of recall, conditional on the
            samples' balls, hence of the choice of the reference's images alone.
        replicates: lists of floats, see `intervals.replicates`. Of recall, of the reference's images, so that they pair
            between any two sets against one reference.
        unreliable: why a metric says little of so small a set; it is computed nevertheless, if it can be.
        unavailable: what is missing from the reference.
        warnings is a list: what `unreliable` says, each with the name of the metric.

    Raises:
        ValueError: sources that can't be used, see `measure` and `load_reference`; unknown `distances`.
        RunError: the weights can't be downloaded.
    """
    if distances not in DISTANCES:  # before the slow part
        raise ValueError(f"unknown distances {distances!r}; there are {', '.join(DISTANCES)}")
    if num_replicates < 0:
        raise ValueError(f"num_replicates is {num_replicates}; it must be 0 or more")
    extractor = extractor or open_extractor(variant, weights, device, quiet)
    if extractor.variant != variant:
        raise ValueError(f"the extractor is of the variant {extractor.variant}, not {variant}")
    count_images(samples)  # before measuring the reference, which can be slow
    base = load_reference(reference, extractor, batch_size=batch_size, quiet=quiet)
    own = measure(
        samples, extractor, batch_size=batch_size, limit=limit, influences=num_replicates > 0, quiet=quiet,
        keep=None if num_replicates or base.features is not None else 0,
    )  # fmt: skip
    assert own.spatial is not None and own.inception_score is not None
    values: dict[str, float | None] = dict.fromkeys(METRICS)
    influences: dict[str, np.ndarray] = {}
    values["fid"] = frechet_distance(own.pooled, base.pooled)
    values["sfid"] = None if base.spatial is None else frechet_distance(own.spatial, base.spatial)
    values["is"] = own.inception_score
    if num_replicates:
        assert own.features is not None and own.spatial_features is not None and own.score_influence is not None
        influences["fid"] = frechet_influence(own.features, own.pooled, base.pooled, device=device)
        if base.spatial is not None:
            influences["sfid"] = frechet_influence(own.spatial_features, own.spatial, base.spatial, device=device)
        influences["is"] = own.score_influence
    kid_spread = kid_subset_size = None
    if base.features is not None and own.features is not None:
        if min(len(base.features), len(own.features)) > NEIGHBOURS:
            inside = inside_balls(own.features, base.features, distances=distances, device=device, quiet=quiet)
            for name, points in zip(BALLS, inside, strict=True):
                values[name] = share = float(points.mean())
                influences[name] = points - share
            if distances != "float64":
                exact = inside_balls(own.features, base.features, device=device, quiet=quiet)
                values |= {f"exact_{name}": float(points.mean()) for name, points in zip(BALLS, exact, strict=True)}
        if len(base.features) > 1:
            values["kid"], kid_spread, kid_subset_size, influences["kid"] = kid(
                own.features, base.features, device=device, quiet=quiet
            )
    estimates = {name: value for name, value in values.items() if value is not None}
    unreliable = _unreliable(own, base, extractor.sizes)
    return {
        "variant": variant,
        "weights": extractor.weights,
        "num_samples": own.count,
        "num_reference": base.count,
        "distances": distances,
        **values,
        "kid_spread": kid_spread,
        "kid_subset_size": kid_subset_size,
        "standard_errors": {
            name: standard_error(influences[name]) if num_replicates and name in influences else None
            for name in METRICS
        },
        "replicates": replicates(estimates, influences, num_replicates) if num_replicates else {},
        "unreliable": unreliable,
        "unavailable": _unavailable(base),
        "warnings": [f"{name}: {reason}" for name, reason in unreliable.items()],
    }


def _unreliable(own: Statistics, base: Statistics, sizes: tuple[int, int]) -> dict[str, str]:
    """By metric, why these sets are too small for it."""
    assert own.count is not None and own.classes is not None
    found = {}
    for name, size in zip(("fid", "sfid"), sizes, strict=True):
        if name == "sfid" and base.spatial is None:
            continue
        few = [
            f"{count} images of the {side}"
            for side, count in (("samples", own.count), ("reference", base.count))
            if count is not None and count <= size
        ]
        if few:
            found[name] = f"{' and '.join(few)} for {size} features: singular covariance"
    # Scores of splits are averaged, and none can exceed its number of images.
    if (split := own.count % SPLIT or SPLIT) < own.classes:
        found["is"] = f"a split of {split} images for {own.classes} classes"
    if base.features is not None:
        fewest = min(own.count, len(base.features))
        if fewest <= NEIGHBOURS:
            found |= dict.fromkeys(("precision", "recall"), f"{fewest} images; more than {NEIGHBOURS} are needed")
        if fewest < 2:
            found["kid"] = f"{fewest} image of the reference; 2 are needed"
    return found


def _unavailable(base: Statistics) -> dict[str, str]:
    """By metric, what the reference does not have."""
    missing = {}
    if base.spatial is None:
        missing["sfid"] = "the reference has no spatial statistics"
    if base.features is None:
        missing |= dict.fromkeys(("precision", "recall", "kid"), "the reference has neither features nor images")
    return missing


def make_reference(
    source: Source,
    out: Path,
    extractor: Extractor,
    *,
    size: int | None = None,
    batch_size: int = 64,
    limit: int | None = None,
    quiet: bool = False,
) -> int:
    """Writes the statistics of the images to `out`, an `.npz`, and returns how many images they are of.

    Args:
        size: resize the shorter side to `size` (bicubic) and cut out the centre, size × size.

    Raises:
        ValueError: images that can't be used, or a file that can't be written.
    """
    if out.suffix != ".npz":
        raise ValueError(f"--out {out} must end in .npz")
    with atomic_write(out) as tmp_path:
        made = measure(
            source, extractor, batch_size=batch_size, limit=limit, size=size, keep=REFERENCE_FEATURES, quiet=quiet
        )
        assert made.spatial is not None and made.features is not None and made.count is not None
        np.savez(
            tmp_path,
            mu=made.pooled.mean,
            sigma=made.pooled.covariance,
            mu_s=made.spatial.mean,
            sigma_s=made.spatial.covariance,
            features=made.features,
            count=np.array(made.count),
            variant=np.array(extractor.variant),
            weights=np.array(extractor.weights),
        )
    return made.count
