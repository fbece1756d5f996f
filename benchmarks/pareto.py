"""Quality against time on the shipped models: the paper's cache, our extensions, fewer steps, other methods.

python -m benchmarks.pareto --count 500
python -m benchmarks.pareto --models text --count 64 --points "plain N=5, m=1" "forecast N=5, m=0"

Quality is the distance of each picture to the baseline's from the same noise (mean squared error, PSNR, SSIM, cosine
distance of the CLIP scorer's features), agreement with the prompt (its CLIP Score) and FID to fresh renders. The
baseline itself is not exact: a second distance, over --fine-count pictures, is to a fine solution of the same equation
from the same noise. Time is the U-Net's and end-to-end, all points in turn in one process. Pictures are saved in
--work, and a larger --count adds to them; results are a table, a CSV file and a plot for each model in --out.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure
from tqdm import tqdm

from common import numbers
from common.command_line import Parser, run_cli
from common.files import atomic_write, check_can_be_made, write_text
from common.reading import read_json
from common.timing import alternate, pairwise, time_call
from eval import clip_score, fid
from eval.generation.prompts import shapes_caption
from eval.metrics.distances import psnr
from eval.metrics.features import ShapesFeatures
from eval.metrics.fid import make_reference
from image_sets.batches import Batch, to_uint8
from image_sets.reading import image_batches
from shapes.draw import draw

from .pareto_output import document, plot, write_csv
from .points import MODELS, Point

SEED = 3


def pictures(point: Point, file: Path, count: int, batch_size: int, quiet: bool) -> np.ndarray:
    """uint8 (count, H, W, 3), from the file, to which missing ones are added in whole batches."""
    made = 0
    parts: list[np.ndarray] = []
    if file.is_file():
        stored = np.concatenate(list(image_batches(file, 256)))
        if len(stored) >= count:
            return stored[:count]
        made = len(stored) // batch_size * batch_size
        parts.append(stored[:made])
    for start in tqdm(range(made, count, batch_size), desc=point.name, disable=quiet, leave=False):
        indices = list(range(start, min(start + batch_size, count)))
        batch = Batch.of(SEED, indices)
        parts.append(to_uint8(point.make(batch), indices))
    images = np.concatenate(parts)
    with atomic_write(file) as tmp_path:
        np.savez_compressed(tmp_path, arr_0=images)
    return images


def errors(ours: np.ndarray, others: np.ndarray, suffix: str = "") -> dict[str, float]:
    """Mean squared error × 10⁴, median PSNR and its 95 % interval, of uint8 pictures (N, H, W, 3) to others.

    `suffix` is added to the names mse and psnr.
    """
    each = psnr(ours, others)
    low, high = median_interval(each)
    squared = ((ours.astype(np.float64) - others) / 255) ** 2
    psnr_name = f"psnr{suffix}"
    return {
        f"mse{suffix}": 1e4 * float(squared.mean()),
        psnr_name: float(np.median(each)),
        f"{psnr_name}_low": low,
        f"{psnr_name}_high": high,
    }


def median_interval(values: np.ndarray, resamples: int = 1000) -> tuple[float, float]:
    """The 95 % interval of the median of these values (N,), by the medians of as many resamples."""
    drawn = np.random.default_rng(0).integers(0, len(values), (resamples, len(values)))
    low, high = np.quantile(np.median(values[drawn], axis=1), [0.025, 0.975])
    return float(low), float(high)


def distances(ours: np.ndarray, baseline: np.ndarray, extractor: ShapesFeatures) -> dict[str, float]:
    """Distances of each picture to the baseline's from the same noise."""
    x, y = (torch.from_numpy(a).permute(0, 3, 1, 2).double() for a in (ours, baseline))
    ssim = structural_similarity_index_measure(x, y, data_range=255.0, reduction="none")
    features = [
        np.concatenate([extractor(a[k : k + 64]).pooled for k in range(0, len(a), 64)]) for a in (ours, baseline)
    ]
    a, b = (f / np.linalg.norm(f, axis=1, keepdims=True) for f in features)
    assert isinstance(ssim, Tensor)
    return {
        **errors(ours, baseline),
        "ssim": float(ssim.median()),
        "features": float((1 - (a * b).sum(1)).mean()),
    }


def named(point: Point) -> str:
    """The name of its files."""
    return re.sub(r"[^\w.+=]+", "-", point.name)


def quality(
    model: str, points: list[Point], count: int, fine_count: int, batch_size: int, work: Path, quiet: bool
) -> list[dict[str, Any]]:
    """The measurements of each point's pictures, except the fine solution's: from its file, if it exists.

    Args:
        points: the baseline first, the fine solution last.
    """
    stands_for, _, layouts = MODELS[model]
    reference, extractor = work / f"reference-{stands_for}.npz", ShapesFeatures()
    if not reference.is_file():
        drawn = work / f"drawn-{stands_for}.npz"
        draw(stands_for, 2000, drawn, quiet)
        make_reference(drawn, reference, extractor, quiet=True)
    rows: list[dict[str, Any]] = []
    baseline, *_, fine = points

    def images_of(point: Point, number: int) -> np.ndarray:
        file = work / model / (named(point) + ".npz")
        return pictures(point, file, number, batch_size, quiet)

    for point in tqdm(points[:-1], desc=f"{model}, quality", disable=quiet):
        summary = work / model / f"{named(point)}-{count}-{fine_count}.json"
        if not summary.is_file():
            images = images_of(point, count)
            row: dict[str, float] = {}
            for column, layout in layouts.items():
                if point.run is not None and baseline.run is not None:
                    row[column] = layout.macs(*baseline.run) / layout.macs(*point.run)
            if point is not baseline:
                row |= distances(images, images_of(baseline, count), extractor)
            row |= errors(images[:fine_count], images_of(fine, fine_count), "_fine")
            row["fid"] = fid.compute(images, reference, variant="shapes", extractor=extractor, quiet=True)["fid"]
            if model == "text":
                captions = [shapes_caption(k) for k in range(count)]
                row["clip_score"] = clip_score.compute(images, captions, model="shapes", quiet=True)["mean"]
            write_text(summary, json.dumps(row) + "\n")
        saved = read_json(summary, dict, remedy="remove it to have it measured again")
        rows.append({"name": point.name, "kind": point.kind, **saved})
    return rows


def times(model: str, points: list[Point], batch_size: int, repeats: int, quiet: bool) -> list[dict[str, float]]:
    """Speed-ups over the first point, of the U-Net and end-to-end: medians of the ratios within a round."""
    bar = tqdm(total=(repeats + 1) * len(points), desc=f"{model}, time", disable=quiet)

    def seconds(point: Point) -> tuple[float, float]:
        indices = list(range(batch_size))
        batch = Batch.of(SEED, indices)
        timed = SimpleNamespace(unet=point.unet)
        _, whole, (parts,) = time_call([timed], lambda: point.make(batch), torch.device("cpu"))
        bar.update()
        return parts.unet, whole

    calls = [partial(seconds, point) for point in points]
    alternate(calls, 1)
    first, *others = alternate(calls, repeats)
    bar.close()
    rows = [{"unet_speed_up": 1.0, "speed_up": 1.0, "seconds": statistics.median(w for _, w in first) / batch_size}]
    for timed in others:
        unet, whole = (pairwise([f[k] for f in first], [o[k] for o in timed])["median"] for k in (0, 1))
        rows.append(
            {"unet_speed_up": unet, "speed_up": whole, "seconds": statistics.median(w for _, w in timed) / batch_size}
        )
    return rows


def parser() -> Parser:
    p = Parser(prog="python -m benchmarks.pareto", description=__doc__)
    p.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    p.add_argument(
        "--points",
        nargs="+",
        metavar="NAME",
        help="only these and the baseline, by their names in the table (default: all)",
    )
    p.add_argument("--count", type=numbers.whole(2, numbers.MOST_IMAGES), default=500, help="pictures per point")
    p.add_argument(
        "--fine-count", type=numbers.whole(2, numbers.MOST_IMAGES), metavar="COUNT",
        help="how many are also compared with the fine solution (default: 100, or --count if that is less)",
    )  # fmt: skip
    p.add_argument("--batch-size", type=numbers.batch, default=32)
    p.add_argument("--time-batch", type=numbers.batch, default=8, help="pictures per timed call")
    p.add_argument("--repeats", type=numbers.repeats, default=3, help="timed rounds")
    p.add_argument("--quality-only", action="store_true", help="time nothing, write no tables")
    p.add_argument(
        "--work", type=Path, default=Path("outputs/pareto"), metavar="DIR", help="pictures and their measurements"
    )
    p.add_argument("--out", type=Path, default=Path("results/pareto"), metavar="DIR")
    p.add_argument("--quiet", action="store_true", help="no progress bars")
    return p


def run(args: argparse.Namespace) -> None:
    if args.fine_count is None:
        args.fine_count = min(args.count, 100)
    if args.fine_count > args.count:
        raise ValueError(f"--fine-count is {args.fine_count}; it must be at most --count, {args.count}")
    check_can_be_made(args.out)
    points_of = {model: MODELS[model].points() for model in args.models}
    if unknown := set(args.points or ()) - {point.name for points in points_of.values() for point in points}:
        raise ValueError(f"--points {min(unknown)!r} is not among those of {', '.join(points_of)}; see results/pareto")
    for model, (baseline, *points, fine) in points_of.items():
        if args.points is not None:
            points = [p for p in points if p.name in args.points]
        rows = quality(
            model, [baseline, *points, fine], args.count, args.fine_count, args.batch_size, args.work, args.quiet
        )
        if args.quality_only:
            continue
        timed_points = [baseline, *points]
        for row, timed in zip(rows, times(model, timed_points, args.time_batch, args.repeats, args.quiet), strict=True):
            row.update(timed)
        title = str(MODELS[model].points.__doc__)
        text = document(title, rows, fine.name, args)
        write_text(args.out / f"{model}.md", text)
        write_csv(rows, args.out / f"{model}.csv")
        plot(rows, title, args.out / f"{model}.png")
        print(text)


def main(argv: list[str] | None = None) -> int:
    return run_cli(lambda: run(parser().parse_args(argv)), resumable=True)


if __name__ == "__main__":
    sys.exit(main())
