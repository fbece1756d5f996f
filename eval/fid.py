"""FID, sFID, Inception Score, precision, recall and KID of a set of images against a reference.

python -m eval.fid samples.npz VIRTUAL_imagenet256_labeled.npz --variant adm            as the tables for LDM-4-G
python -m eval.fid samples/ cifar10-reference.npz --variant pytorch-fid                 as the tables for DDPM
python -m eval.fid samples/ drawn/ --variant shapes                     pictures of the shipped models, no download

Both are folders, .npz or .pt; the reference can also be an .npz of statistics: OpenAI's, pytorch-fid's, or one that
`python -m eval.reference` made. Pixels of a folder's images are used as stored, as in pytorch-fid: EXIF and
transparency are ignored. The folder of a set that was made here stands for its samples.npz.
± is half of a 95 % interval: 1.96 standard errors, given the reference.
If a set is too small for a metric, it is computed with a warning.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from common import numbers
from common.command_line import Parser, add_quiet_argument, run_cli
from common.device import resolve_device
from common.environment import versions
from common.files import atomic_write
from common.words import counted
from image_sets.reading import existing

from .metrics.distributions import DISTANCES
from .metrics.features import VARIANTS, Extractor, open_extractor
from .metrics.fid import METRICS, compute
from .metrics.intervals import REPLICATES, Z95
from .metrics.version import code_version


def parser() -> Parser:
    p = Parser(prog="python -m eval.fid", description=__doc__)
    p.add_argument("samples", type=Path, metavar="SAMPLES", help="folder, .npz or .pt of images")
    p.add_argument("reference", type=Path, metavar="REFERENCE", help="the same, or an .npz of statistics")
    p.add_argument("--limit", type=numbers.whole(2, numbers.MOST_IMAGES), help="use only the first N samples")
    p.add_argument(
        "--distances", choices=DISTANCES, default="float64",
        help="precision of the distances in precision and recall; float16 rounds as OpenAI's evaluator does",
    )  # fmt: skip
    p.add_argument(
        "--replicates", type=numbers.whole(0, 100_000), default=REPLICATES,
        help="replicates of each metric in --out, for paired comparisons of sets; 0: no intervals either",
    )  # fmt: skip
    add_extractor_arguments(p)
    p.add_argument("--out", type=Path, metavar="FILE", help="write the result to this JSON file")
    return p


def add_extractor_arguments(p: argparse.ArgumentParser) -> None:
    """Arguments shared with eval.reference."""
    p.add_argument("--variant", choices=VARIANTS, default="adm", help="network and preprocessing")
    p.add_argument(
        "--weights", type=Path, metavar="FILE",
        help="weights of the Inception network (default: the published ones, from torch.hub's cache or downloaded)",
    )  # fmt: skip
    p.add_argument("--batch-size", type=numbers.batch, default=64)
    p.add_argument("--device", help="cuda, mps or cpu (default: first available)")
    add_quiet_argument(p)


def extractor_of(args: argparse.Namespace) -> tuple[Extractor, torch.device]:
    """The extractor and device of the arguments above."""
    device = resolve_device(args.device)
    return open_extractor(args.variant, args.weights, device, args.quiet), device


def run(args: argparse.Namespace) -> None:
    for source in (args.samples, args.reference):
        existing(source)
    extractor, device = extractor_of(args)

    def measure() -> dict[str, Any]:
        settings = {"samples": str(args.samples), "reference": str(args.reference)}
        made_with = {"code": code_version(), "versions": versions(device)}
        return settings | made_with | compute(
            args.samples, args.reference, variant=args.variant, extractor=extractor, device=device,
            batch_size=args.batch_size, limit=args.limit, distances=args.distances,
            num_replicates=args.replicates, quiet=args.quiet,
        )  # fmt: skip

    if args.out:
        with atomic_write(args.out) as tmp_path:  # opened first, so that an unwritable --out costs no time
            result = measure()
            tmp_path.write_text(json.dumps(result, indent=1) + "\n")
    else:
        result = measure()
    for warning in result["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{counted(result['num_samples'], 'image')}, variant {args.variant}")
    for name in METRICS:
        print(_line(name, result))


def _line(name: str, result: dict[str, Any]) -> str:
    """A metric, with its interval."""
    value, error = result[name], result["standard_errors"][name]
    scale = 1000 if name == "kid" else 1
    title = f"{name if scale == 1 else 'kid × 1e3':<10}"
    if value is None:
        return f"{title}not available: {result['unavailable'].get(name) or result['unreliable'][name]}"
    return f"{title}{scale * value:.4f}" + ("" if error is None else f" ± {scale * Z95 * error:.4f} (95 %)")


def main(argv: list[str] | None = None) -> int:
    return run_cli(lambda: run(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
