"""Measures a row's images: FID and related metrics or CLIP Score, and distances to the baseline's images."""

from __future__ import annotations

import functools
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from common.digests import file_digest
from common.files import write_json
from common.reading import read_json
from common.shipped import SHAPES_CLIP
from image_sets.reading import image_batches
from image_sets.sets import samples_digest
from shapes.draw import draw

from ..metrics import clip_score, fid
from ..metrics.distances import feature_distance, psnr
from ..metrics.features import Extractor, ShapesFeatures, open_extractor
from ..metrics.intervals import Z95, standard_error
from ..metrics.published import INCEPTION
from ..metrics.version import code_version
from .data import ClipScore, FidScore
from .jobs import Job, Options
from .measured import Found, Measured, measured

FID_METRICS = (*fid.METRICS, "exact_precision", "exact_recall")


def measure_scores(job: Job, options: Options) -> Measured:
    """The scores of an existing set of images, by column: whichever the model is scored by.

    Raises:
        ValueError: a reference that can't be used.
        RunError: a scorer's weights are not available.
    """
    score = job.model.score
    made_from: dict[str, Any] = {
        "score": asdict(score) | {"reference": None}, "samples": samples_digest(job.out), "num_images": job.num_images,
        "scorer": scorer_identity(score), "code": code_version(),
    }  # fmt: skip
    if isinstance(score, ClipScore):
        made_from["prompts"] = file_digest(job.out / "prompts.txt")
        return measured(
            job.measured / "scores.json", made_from, lambda: _clip_score(job, score, options), options.device
        )
    assert job.reference is not None
    if score.drawn is not None:
        _draw_reference(job.reference, score, score.drawn, options)
    made_from["reference"] = file_digest(job.reference)
    return measured(job.measured / "scores.json", made_from, lambda: _fid(job, score, options), options.device)


def measure_pairs(job: Job, baseline: Job, options: Options) -> Measured:
    """Distances of each image to the baseline's from the same noise. Both sets must exist."""
    made_from = {
        "samples": samples_digest(job.out), "baseline": samples_digest(baseline.out), "num_images": job.num_images,
        "scorer": _weights_of("shapes") if options.scale.distance else None, "code": code_version(),
    }  # fmt: skip
    return measured(job.measured / "pairs.json", made_from, lambda: _pairs(job, baseline, options), options.device)


def scorer_identity(score: FidScore | ClipScore) -> str:
    """Identifies the scorer's weights."""
    if isinstance(score, FidScore):
        return _weights_of(score.variant)
    return _weights_of("shapes") if score.clip == "shapes" else f"{score.clip}/{clip_score.PRETRAINED}"


def _weights_of(variant: str) -> str:
    # Inception's published weights are checked against this whenever they are read.
    return file_digest(SHAPES_CLIP / "open_clip_model.safetensors") if variant == "shapes" else str(INCEPTION.digest)


def _clip_score(job: Job, score: ClipScore, options: Options) -> Found:
    result = clip_score.compute(
        job.out / "samples.npz", job.out / "prompts.txt", model=score.clip, device=options.device, quiet=options.quiet
    )
    return _with_errors({"clip_score": (result["mean"], result["standard_error"])}, {"clip_score": result["per_image"]})


def _fid(job: Job, score: FidScore, options: Options) -> Found:
    assert job.reference is not None
    result = fid.compute(
        job.out / "samples.npz", job.reference, variant=score.variant,
        extractor=_extractor(score.variant, options.device), distances=score.distances,
        device=options.device, quiet=options.quiet,
    )  # fmt: skip
    errors = result["standard_errors"]
    return _with_errors(
        {name: (result[name], errors.get(name)) for name in FID_METRICS if name in result},
        result["replicates"],
        result["unreliable"],
    )


def _pairs(job: Job, baseline: Job, options: Options) -> Found:
    import scipy.stats  # imported late: it takes a second, and a dry run does not need it

    each: dict[str, list[float]] = {"psnr": []}
    if options.scale.distance:
        each["distance"] = []
    sets = (image_batches(one.out / "samples.npz", 64, job.num_images) for one in (job, baseline))
    for ours, theirs in zip(*sets, strict=True):
        each["psnr"] += psnr(ours, theirs).tolist()
        if options.scale.distance:
            each["distance"] += feature_distance(ours, theirs, _shapes_features(options.device)).tolist()
    # PSNR is shown as a median: equal images, whose PSNR is infinite, would dominate a mean.
    interval = scipy.stats.quantile_test(each["psnr"], p=0.5).confidence_interval(0.95)
    found = _with_errors({name: _mean(values) for name, values in each.items() if name != "psnr"}, each)
    return Found(
        {"psnr": float(np.median(each["psnr"])), **found.values},
        {"psnr": _finite(interval.low), **found.low},
        {"psnr": _finite(interval.high), **found.high},
        each,
    )


def _mean(values: list[float]) -> tuple[float, float | None]:
    """With its standard error."""
    return float(np.mean(values)), standard_error(np.array(values))


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _with_errors(
    values: dict[str, tuple[float | None, float | None]],
    each: dict[str, list[float]],
    unreliable: dict[str, str] | None = None,
) -> Found:
    """From values and their standard errors."""
    both = {name: (value, error) for name, (value, error) in values.items() if value is not None and error is not None}
    return Found(
        {name: value for name, (value, _) in values.items()},
        {name: value - Z95 * error for name, (value, error) in both.items()},
        {name: value + Z95 * error for name, (value, error) in both.items()},
        each,
        unreliable or {},
    )


def _draw_reference(reference: Path, score: FidScore, like: str, options: Options) -> None:
    """Draws the reference unless it exists and was drawn with the same settings."""
    number, record = options.scale.reference_images, reference.with_suffix(".json")
    made_from = {"like": like, "number": number, "scorer": _weights_of(score.variant), "code": code_version()}
    reference.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(reference.with_suffix(".lock")):  # of simultaneous processes, the first draws
        try:
            there = read_json(record)
            if there == {**made_from, "sha256": file_digest(reference)}:
                return
        except (OSError, ValueError):
            pass
        drawn = reference.with_stem(f"{reference.stem}-drawn")
        draw(like, number, drawn, options.quiet)
        fid.make_reference(drawn, reference, _extractor(score.variant, options.device), quiet=options.quiet)
        write_json(record, {**made_from, "sha256": file_digest(reference)})


@functools.lru_cache(maxsize=1)
def _extractor(variant: str, device: torch.device) -> Extractor:
    return _shapes_features(device) if variant == "shapes" else open_extractor(variant, device=device, quiet=True)


@functools.lru_cache(maxsize=1)
def _shapes_features(device: torch.device) -> ShapesFeatures:
    return ShapesFeatures(device)
