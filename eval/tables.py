"""The paper's tables and figures, each with one command: images, scores, MACs and speed, beside the printed ones.

python -m eval.tables all                                        the shipped models, in under an hour on two cores
python -m eval.tables table3 --scale paper --dry-run             what it takes, and what is missing
python -m eval.tables table1 table4 --scale paper --rows 1,7-9
accelerate launch -m eval.tables table1 --scale paper            on several GPUs

Runs are resumable: rerun the same command. Rows that tables share are computed once. Results are Markdown, CSV and PNG
files in results/SCALE, and a page over them, index.html.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from accelerate import PartialState

from common.command_line import Formatter, RunError, at_least, run_cli
from common.device import DTYPES, resolve_device
from common.files import write_text

from . import report
from .paper.data import SCALES, TABLES, load_scale, load_table
from .paper.estimate import print_costs
from .paper.figures import FIGURES, draw_figure
from .paper.images import is_made, make_images
from .paper.jobs import Options, plan
from .paper.output import as_csv, markdown, readme
from .paper.results import results_of


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m eval.tables", description=__doc__, formatter_class=Formatter)
    p.add_argument("names", nargs="+", metavar="NAME", help=f"{', '.join([*TABLES, *FIGURES])}, or all")
    p.add_argument("--scale", choices=SCALES, default="shapes", help="models: the shipped ones, or the published ones")
    p.add_argument("--rows", type=_numbers, metavar="1,3-5", help="of each table, as numbered in it (default: all)")
    p.add_argument("--dry-run", action="store_true", help="say what each row takes and what is missing; run nothing")
    p.add_argument("--num-images", type=int, help="of each row (default: as many as the scale says)")
    p.add_argument("--batch-size", type=int, help="(default: as the scale says)")
    p.add_argument("--inputs", type=Path, default=Path("inputs"), metavar="DIR", help="published weights, references")
    p.add_argument("--work", type=Path, default=Path("outputs/tables"), metavar="DIR", help="images and their scores")
    p.add_argument("--out", type=Path, metavar="DIR", help="(default: results/SCALE)")
    p.add_argument("--no-speed", action="store_true", help="don't time anything")
    p.add_argument("--speed-batch", type=int, default=4, metavar="B", help="images of a timed call")
    p.add_argument("--repeats", type=int, default=2, help="timed calls of each row, in turn with the baseline")
    p.add_argument("--device", help="cuda, mps or cpu (default: first available)")
    p.add_argument("--dtype", choices=DTYPES, help="of the networks (default: float32)")
    p.add_argument("--quiet", action="store_true", help="no progress bars")
    return p


def run(args: argparse.Namespace) -> None:
    # 1. Check.
    names = _names(args)
    options = _options(args)
    needed = [table for name in names for table in FIGURES.get(name, [])] + [name for name in names if name in TABLES]
    plans = {name: plan(load_table(name), args.rows, options) for name in dict.fromkeys(needed)}
    if args.dry_run:
        print_costs(plans.values(), options.device, options.dtype or "float32")
        return

    # 2. Images, all processes together.
    main = PartialState(cpu=options.device.type == "cpu")
    jobs = {job.out: job for planned in plans.values() for job in planned.jobs if job is not None}
    to_make = [job for job in jobs.values() if not job.missing and not is_made(job)]
    for k, job in enumerate(to_make, 1):
        if main.is_main_process:
            print(f"{k} of {len(to_make)}: {job.out.name}, {job.num_images} images", flush=True)
        print(make_images(job, args.batch_size or job.model.batch_size, options.device, args.quiet))
    if not main.is_main_process:
        return

    # 3. Scores, speed and MACs, table by table.
    out = args.out or Path("results") / args.scale
    results = {}
    for name, planned in plans.items():
        results[name] = results_of(planned, options)
        if name in names:
            write_text(out / f"{name}.md", markdown(planned, results[name], options))
            write_text(out / f"{name}.csv", as_csv(planned.table, results[name]))

    # 4. Figures, and the page over all.
    for name in names:
        if name in FIGURES:
            draw_figure(name, plans, results, options, out)
    write_text(out / "README.md", readme(options))
    write_text(out / "index.html", report.page(report.sections(out), f"DeepCache's tables, scale {args.scale}"))
    print(f"{len(to_make)} sets of images made; written {out}: {', '.join(names)}, index.html")
    if missing := {text for job in jobs.values() for text in job.missing}:
        count = sum(bool(job.missing) for job in jobs.values())
        raise RunError(f"{count} of {len(jobs)} sets were not made, for want of {'; '.join(sorted(missing))}")


def _names(args: argparse.Namespace) -> list[str]:
    """The tables and figures that are asked for. Raises ValueError for an unknown one, or a number out of range."""
    at_least(args, num_images=2, batch_size=1, speed_batch=1, repeats=1)
    known = [*TABLES, *FIGURES]
    if unknown := [name for name in args.names if name not in (*known, "all")]:
        raise ValueError(f"there is no {unknown[0]}; there are {', '.join(known)}, and all")
    return known if "all" in args.names else list(dict.fromkeys(args.names))


def _options(args: argparse.Namespace) -> Options:
    """What all rows share. Raises ValueError for a device that is not available."""
    return Options(
        scale=load_scale(args.scale), work=args.work / args.scale, inputs=args.inputs,
        device=resolve_device(args.device), num_images=args.num_images, dtype=args.dtype, timed=not args.no_speed,
        speed_batch=args.speed_batch, repeats=args.repeats, quiet=args.quiet,
    )  # fmt: skip


def _numbers(text: str) -> list[int]:
    numbers: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            numbers += range(int(first), int(last or first) + 1)
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of rows such as 1,3-5; they count from 1")
    return numbers


def main(argv: list[str] | None = None) -> int:
    return run_cli(run, parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
