"""The scores of a row's images: FID and its kin or the CLIP Score, and PSNR to the baseline's images.

Scores are kept in `scores.json` beside the images.
"""

from __future__ import annotations

import functools
import statistics
from dataclasses import asdict
from pathlib import Path

import torch

from image_sets.reading import image_batches
from shapes.draw import draw

from ..metrics import clip_score, fid
from ..metrics.distances import psnr
from ..metrics.features import Extractor, open_extractor
from . import stored
from .data import ClipScore, FidScore
from .images import is_made
from .jobs import Job, Options


def scores(job: Job, options: Options) -> stored.Numbers:
    """By column: fid, sfid, is, precision and recall, or clip_score, whichever the model's images are scored by."""
    file, score = job.out / "scores.json", job.model.score
    asked = asdict(score)
    if (found := stored.read(file, asked)) is not None:
        return found
    found = _clip_score(job, score, options) if isinstance(score, ClipScore) else _fid(job, score, options)
    stored.write(file, asked, found, options.device)
    return found


def median_psnr(job: Job, baseline: Job) -> float | None:
    """dB, the median over the images of both sets, which start from the same noise; None without the baseline's."""
    if job.out == baseline.out or not is_made(baseline):
        return None
    values: list[float] = []
    sets = (image_batches(one.out / "samples.npz", 64, job.num_images) for one in (job, baseline))
    for ours, theirs in zip(*sets, strict=True):
        values += psnr(ours, theirs).tolist()
    return statistics.median(values)


def _clip_score(job: Job, score: ClipScore, options: Options) -> stored.Numbers:
    result = clip_score.compute(
        job.out / "samples.npz", job.out / "prompts.txt", model=score.clip, device=options.device, quiet=options.quiet
    )
    return {"clip_score": result["mean"], "standard_error": result["standard_error"]}


def _fid(job: Job, score: FidScore, options: Options) -> stored.Numbers:
    assert job.reference is not None
    extractor = _extractor(score.variant, options.device)
    number = options.scale.reference_images
    if number is not None and not job.reference.is_file():  # pictures of the renderer, not a file of the user's
        _draw_reference(job.run.model, number, job.reference, extractor, options.quiet)
    result = fid.compute(
        job.out / "samples.npz", job.reference, variant=score.variant, extractor=extractor, device=options.device,
        quiet=options.quiet,
    )  # fmt: skip
    return {name: result[name] for name in ("fid", "sfid", "is", "precision", "recall")}


def _draw_reference(model: str, number: int, reference: Path, extractor: Extractor, quiet: bool) -> None:
    drawn = reference.with_stem(f"{reference.stem}-drawn")
    draw(model, number, drawn, quiet)
    fid.make_reference(drawn, reference, extractor, quiet=quiet)


@functools.lru_cache(maxsize=1)
def _extractor(variant: str, device: torch.device) -> Extractor:
    return open_extractor(variant, device=device, quiet=True)
