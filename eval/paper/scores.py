"""What is measured for a row of a table: its images are made, scored, compared and timed. Nothing is done twice.

All results are files beside the images, or in `speed/`; a row whose settings are those of another has its results.
"""

from __future__ import annotations

import functools
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ddpm.sample
import ldm.sample
from common.environment import versions
from common.files import atomic_write
from common.timing import Clock, alternate, pairwise, spread
from eval import clip_score, fid, generate
from image_sets.batches import Batch
from image_sets.generate import Run
from image_sets.reading import count_images, image_batches
from shapes.draw import draw

from ..metrics.features import Extractor, open_extractor
from ..metrics.fid import make_reference
from .rows import Job, load_scale

SCRIPTS: dict[str, Any] = {"ldm": ldm.sample, "ddpm": ddpm.sample, "text": generate}
WARM_UP = 1


def is_made(job: Job) -> bool:
    """Whether the set of images is there in full."""
    samples = job.out / "samples.npz"
    if not samples.is_file() or count_images(samples) < job.num_images:
        return False
    return job.model["sampler"] != "text" or (job.out / "prompts.txt").is_file()


def make_images(job: Job, batch_size: int, quiet: bool) -> None:
    """Runs the sampling script, on this and on the other processes that were started with it."""
    script = SCRIPTS[job.model["sampler"]]
    size = ["--num-images", str(job.num_images), "--batch-size", str(batch_size), "--out", str(job.out)]
    script.work(script.parser().parse_args([*job.argv, *size, *(["--quiet"] if quiet else [])]))


def scores(job: Job, scale: str, device: torch.device, quiet: bool) -> dict[str, Any]:
    """FID and its kin, or the CLIP Score: whichever the model's images are scored by; from the file, if it is there."""
    file, asked = job.out / "scores.json", job.model["score"]
    if (stored := _stored(file, asked)) is not None:
        return stored
    samples = job.out / "samples.npz"
    if "clip" in asked:
        result = clip_score.compute(
            samples, job.out / "prompts.txt", model=asked["clip"], device=device, quiet=quiet
        )  # fmt: skip
        found = {"clip_score": result["mean"], "standard_error": result["standard_error"]}
    else:
        assert job.reference is not None
        extractor = _extractor(asked["variant"], str(device))
        number = load_scale(scale)["reference_images"]
        if number is not None and not job.reference.is_file():  # pictures of the renderer, not a file of the user's
            drawn = job.reference.with_stem(f"{job.reference.stem}-drawn")
            draw(job.run["model"], number, drawn, quiet)
            make_reference(drawn, job.reference, extractor, quiet=quiet)
        result = fid.compute(
            samples, job.reference, variant=asked["variant"], extractor=extractor, device=device, quiet=quiet
        )
        found = {name: result[name] for name in ("fid", "sfid", "is", "precision", "recall")}
    _store(file, asked, found, device)
    return found


def psnr(job: Job, baseline: Job) -> float | None:
    """dB, the median over the images of both sets, which start from the same noise; None without the baseline's."""
    if job.out == baseline.out or not is_made(baseline):
        return None
    values = []
    sets = (image_batches(one.out / "samples.npz", 64, job.num_images) for one in (job, baseline))
    for ours, theirs in zip(*sets, strict=True):
        squared = (ours.astype(np.float64) - theirs) ** 2
        values += (-10 * np.log10(squared.mean((1, 2, 3)).clip(1e-12) / 255**2)).tolist()
    return statistics.median(values)


def speed(
    job: Job, baseline: Job, work: Path, *, batch_size: int, repeats: int, device: torch.device, quiet: bool
) -> dict[str, Any]:
    """Images a second of whole calls, and the speed-up over the baseline, both run in turn in this process."""
    label = baseline.name if job.name == baseline.name else f"{job.name}-over-{baseline.name}"
    file = work / "speed" / f"{label}.json"
    asked = {"argv": job.argv, "batch_size": batch_size, "repeats": repeats}
    if (stored := _stored(file, asked)) is not None:
        return stored
    calls = [_call(one, batch_size, device) for one in ([baseline] if job.name == baseline.name else [baseline, job])]
    alternate(calls, WARM_UP)
    *first, seconds = alternate(calls, repeats)
    ratio = pairwise(first[0], seconds) if first else spread([1.0])
    found = {"throughput": batch_size / statistics.median(seconds), "speedup": ratio["median"], "spread": ratio}
    _store(file, asked, found, device)
    return found


def _call(job: Job, batch_size: int, device: torch.device) -> Callable[[], float]:
    run, clock = open_run(job), Clock(device)

    def seconds() -> float:
        clock.synchronise()
        start = clock.mark()
        run.make(Batch.of(0, list(range(batch_size))))
        return clock.seconds(start, clock.mark())

    return seconds


def open_run(job: Job) -> Run:
    """The model of a job, loaded, and how it makes images."""
    return _open_run(job.model["sampler"], tuple(job.argv))


@functools.lru_cache(maxsize=2)  # a baseline and what is compared with it
def _open_run(sampler: str, argv: tuple[str, ...]) -> Run:
    script = SCRIPTS[sampler]
    return script.prepare(script.parser().parse_args([*argv, "--quiet"]))


@functools.lru_cache(maxsize=1)
def _extractor(variant: str, device: str) -> Extractor:
    return open_extractor(variant, device=device, quiet=True)


def _stored(file: Path, asked: dict[str, Any]) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    content = json.loads(file.read_text())
    return content["found"] if content["asked"] == json.loads(json.dumps(asked)) else None


def _store(file: Path, asked: dict[str, Any], found: dict[str, Any], device: torch.device) -> None:
    with atomic_write(file) as tmp_path:
        content = {"asked": asked, "found": found, "versions": versions(device)}
        tmp_path.write_text(json.dumps(content, indent=1) + "\n")
