"""Makes reference statistics for eval.fid from images: of CIFAR-10, LSUN, COCO or any other set.

python -m eval.reference cifar10/train/ --variant pytorch-fid --out cifar10-reference.npz
python -m eval.reference lsun/bedroom/ --size 256 --variant adm --out bedroom-reference.npz

The file has `mu`, `sigma` (pooled features), `mu_s`, `sigma_s` (spatial ones), `features` of the first 10,000 images
for precision and recall, `count`, `variant` and `weights`; eval.fid refuses to compare what differs in the last two.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from .arguments import Formatter, at_least, exit_status
from .features import Extractor
from .fid import REFERENCE_FEATURES, add_extractor_arguments, extractor_of, measure
from .files import written_aside
from .read_images import Source


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
    with written_aside(out) as aside:
        made = measure(
            source, extractor, batch_size=batch_size, limit=limit, size=size, keep=REFERENCE_FEATURES, quiet=quiet
        )
        assert made.spatial is not None and made.features is not None and made.count is not None
        np.savez(
            aside,
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


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m eval.reference", description=__doc__, formatter_class=Formatter)
    p.add_argument("source", type=Path, metavar="SOURCE", help="folder, .npz or .pt of images")
    p.add_argument("--out", type=Path, required=True, metavar="FILE", help="the .npz to write")
    p.add_argument("--size", type=int, help="resize the shorter side to this and cut out the centre")
    p.add_argument("--limit", type=int, help="no more images than this")
    add_extractor_arguments(p)
    return p


def work(args: argparse.Namespace) -> None:
    at_least(args, size=1)
    extractor, _ = extractor_of(args)
    count = make_reference(
        args.source, args.out, extractor,
        size=args.size, batch_size=args.batch_size, limit=args.limit, quiet=args.quiet,
    )  # fmt: skip
    print(f"{args.out}: statistics of {count} images, variant {args.variant}")


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return exit_status(lambda: work(args))


if __name__ == "__main__":
    sys.exit(main())
