"""FID, sFID, Inception Score, precision and recall: statistics of sets of images, made, stored and compared."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from common.files import atomic_write
from image_sets.reading import Source, count_images, image_batches

from .distributions import (
    NEIGHBOURS,
    Gaussian,
    RunningGaussian,
    RunningInceptionScore,
    frechet_distance,
    precision_recall,
)
from .features import Extractor, open_extractor
from .inception import Features

REFERENCE_FEATURES = 10_000  # for precision and recall, as many as OpenAI's references have images


@dataclass(frozen=True)
class Statistics:
    """What is known of a set of images. `features` are pooled ones (N, D), for precision and recall."""

    pooled: Gaussian
    spatial: Gaussian | None = None
    features: np.ndarray | None = None
    count: int | None = None
    inception_score: float | None = None


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
            features = _finite(extractor(batch), name, pooled.count)
            kept.append(features.pooled[: None if keep is None else max(0, keep - pooled.count)])
            pooled.update(features.pooled)
            spatial.update(features.spatial)
            score.update(features.probabilities)
            bar.update(len(batch))
    rows = np.concatenate(kept)
    return Statistics(pooled.gaussian(), spatial.gaussian(), rows if len(rows) else None, total, score.value())


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
    shapes = [np.shape(stored.get(name, ())) for name in (mean, covariance)]
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
