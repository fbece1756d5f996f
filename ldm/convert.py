"""Converts CompVis's LDM-4-G checkpoint, model.ckpt of cin256-v2, to a diffusers directory.

python -m ldm.convert model.ckpt --out models/ldm-cin256 --dtype float16
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from common.command_line import Parser, run_cli
from common.device import DTYPES
from common.files import check_can_be_made
from common.folders import atomic_folder

from .checkpoint import URL, load_pipeline


def convert(checkpoint: Path, out: Path, dtype: str) -> None:
    """Writes the directory `out`, whole or not at all.

    Raises:
        ValueError: `out` exists already, or it is not that checkpoint.
    """
    if out.exists():
        raise ValueError(f"{out} exists already; choose another --out or remove it")
    check_can_be_made(out)
    pipe = load_pipeline(checkpoint, DTYPES[dtype])
    with atomic_folder(out) as tmp_dir:
        pipe.save_pretrained(tmp_dir, safe_serialization=True)


def parser() -> Parser:
    p = Parser(prog="python -m ldm.convert", description=__doc__)
    p.add_argument("checkpoint", type=Path, metavar="model.ckpt", help=f"from {URL}")
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="the directory to write")
    p.add_argument("--dtype", choices=DTYPES, default="float32", help="dtype of the weights written")
    p.add_argument("--quiet", action="store_true", help="print only errors")
    return p


def run(args: argparse.Namespace) -> None:
    if not args.quiet:
        print(f"converting {args.checkpoint}; takes as long as reading and writing it", flush=True)
    convert(args.checkpoint, args.out, args.dtype)
    if not args.quiet:
        print(f"wrote {args.out}")


def main(argv: list[str] | None = None) -> int:
    return run_cli(lambda: run(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
