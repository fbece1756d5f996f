"""Makes reference statistics for eval.fid from images: of CIFAR-10, LSUN, COCO or any other set.

python -m eval.reference cifar10/train/ --variant pytorch-fid --out cifar10-reference.npz
python -m eval.reference lsun/bedroom/ --size 256 --variant adm --out bedroom-reference.npz

The file has `mu`, `sigma` (pooled features), `mu_s`, `sigma_s` (spatial ones), `features` of the first 10,000 images
for KID, precision and recall, `count`, `variant` and `weights`; eval.fid refuses to compare what differs in the last
two.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from common import numbers
from common.command_line import Parser, run_cli
from common.files import check_can_be_written
from common.words import counted

from .fid import add_extractor_arguments, extractor_of
from .metrics.fid import make_reference


def parser() -> Parser:
    p = Parser(prog="python -m eval.reference", description=__doc__)
    p.add_argument(
        "source", type=Path, metavar="SOURCE", help="folder, .npz or .pt of images; pixels are used as stored"
    )
    p.add_argument("--out", type=Path, required=True, metavar="FILE", help="the .npz to write")
    p.add_argument("--size", type=numbers.pixels, help="resize the shorter side to this and cut out the centre")
    p.add_argument("--limit", type=numbers.whole(2, numbers.MOST_IMAGES), help="use only the first N images")
    add_extractor_arguments(p)
    return p


def run(args: argparse.Namespace) -> None:
    check_can_be_written(args.out)
    extractor, _ = extractor_of(args)
    count = make_reference(
        args.source, args.out, extractor,
        size=args.size, batch_size=args.batch_size, limit=args.limit, quiet=args.quiet,
    )  # fmt: skip
    print(f"{args.out}: statistics of {counted(count, 'image')}, variant {args.variant}")


def main(argv: list[str] | None = None) -> int:
    return run_cli(lambda: run(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
