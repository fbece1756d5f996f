"""One static page over a folder of results: tables, plots, and the images of both runs under a slider.

python -m eval.report results
python -m eval.report outputs --out report.html

Shown are, at any depth: *.md (CommonMark with tables), with the *.png and *.csv of the same name; every other *.png;
and the folders that the scripts of this repository write (result.json, baseline_000.png, deepcache_000.png …), of
several with their speed against their distance to the baseline. Everything is in the one file; it needs no network.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from common.command_line import Parser, run_cli
from common.files import write_text
from common.words import counted

from .pages.rendering import page
from .pages.sections import sections


def parser() -> Parser:
    p = Parser(prog="python -m eval.report", description=__doc__)
    p.add_argument("results", type=Path, metavar="RESULTS_DIR")
    p.add_argument("--out", type=Path, metavar="FILE", help="(default: index.html in RESULTS_DIR)")
    p.add_argument("--title", default="DeepCache, reproduced")
    return p


def run(args: argparse.Namespace) -> None:
    found = sections(args.results)
    out = args.out or args.results / "index.html"
    write_text(out, page(found, args.title))
    print(f"Written {out}: {counted(len(found), 'section')}, {out.stat().st_size / 2**20:.1f} MiB")


def main(argv: list[str] | None = None) -> int:
    return run_cli(lambda: run(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
