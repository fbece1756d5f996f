"""The paper's tables and figures, each with one command: images, scores, MACs and speed, beside the paper's.

python -m eval.tables all                                        the shipped models, in under three hours on two cores
python -m eval.tables all --scale paper --dry-run --for a100     costs, and missing inputs
python -m eval.tables table1 table4 --scale paper --rows 1,7-9
python -m eval.tables all --render                               only the pages, from saved measurements
accelerate launch -m eval.tables table1 --scale paper            on several GPUs

Runs are resumable: rerun the same command. Rows that tables share are computed once, and any number of commands, on
one machine or on several with a shared file system, can run different rows at once: each measures its own, and the
pages are made from all of them. Rows that are not requested stay as they are.

Results are Markdown, CSV and PNG files in results/SCALE, and a page over them, index.html. A run with settings other
than the scale's, such as --num-images, goes to a separate folder.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from accelerate import PartialState

from common import numbers
from common.command_line import Parser, RunError, add_quiet_argument, run_cli
from common.device import DTYPES, is_fast, resolve_device
from common.files import check_can_be_made, write_text
from common.words import counted

from .pages.rendering import page
from .pages.sections import sections
from .paper.claims import claims_markdown, load_claims
from .paper.data import SCALES, TABLES, load_scale, load_table
from .paper.estimate import GPUS, HERE, MEASURED_GPU, print_costs
from .paper.figures import FIGURES, draw_figure, measure_figure2
from .paper.images import is_made, make_all
from .paper.inputs import fetch_missing, remedies
from .paper.jobs import Job, Options, Plan, plan
from .paper.measure import measure_all, timed_jobs
from .paper.output import as_csv, markdown, readme
from .paper.progress import TableBar
from .paper.results import results_of

MOST_ROWS = 1000  # of a table


def parser() -> Parser:
    p = Parser(prog="python -m eval.tables", description=__doc__)
    p.add_argument("names", nargs="+", metavar="NAME", help=f"{', '.join([*TABLES, *FIGURES])}, or all")
    p.add_argument("--scale", choices=SCALES, default="shapes", help="shipped or published models")
    p.add_argument("--rows", type=_rows, metavar="1,3-5", help="of each table, as numbered in it (default: all)")
    p.add_argument("--dry-run", action="store_true", help="print costs and missing inputs; run nothing")
    p.add_argument(
        "--for", dest="gpu", choices=[HERE, *GPUS], help="GPU for which --dry-run estimates hours (default: here; "
        "the paper's rtx2080 for its models)",
    )  # fmt: skip
    p.add_argument("--render", action="store_true", help="make the pages from saved measurements; run nothing")
    p.add_argument(
        "--num-images",
        type=numbers.whole(2, numbers.MOST_IMAGES),
        help="images per row (default: the scale's)",
    )
    p.add_argument("--batch-size", type=numbers.batch, help="(default: the scale's)")
    p.add_argument(
        "--original-seeds", action="store_true",
        help="for Stable Diffusion, repeat the noise of 16 images, as the released script does",
    )  # fmt: skip
    p.add_argument("--inputs", type=Path, default=Path("inputs"), metavar="DIR", help="published weights, references")
    p.add_argument("--offline", action="store_true", help="download nothing; rows with missing inputs are skipped")
    p.add_argument("--work", type=Path, default=Path("outputs/tables"), metavar="DIR", help="images")
    p.add_argument("--out", type=Path, metavar="DIR", help="(default: results/SCALE, plus a suffix for other settings)")
    p.add_argument("--no-speed", action="store_true", help="don't time anything")
    p.add_argument(
        "--speed-batch", type=numbers.batch, metavar="B", help="images per timed call (default: the scale's)"
    )
    p.add_argument(
        "--repeats", type=numbers.repeats, default=3, help="timed calls of each row, in turn with the baseline"
    )
    p.add_argument("--device", help="cuda, mps or cpu (default: first available)")
    p.add_argument(
        "--dtype", choices=DTYPES, help="of the networks (default: the scale's; float32 on a CPU that is slow in it)"
    )
    add_quiet_argument(p)
    return p


def run(args: argparse.Namespace) -> None:
    # 1. Check.
    names = _names(args)
    options = _options(args)
    for folder in (options.out, options.work):
        check_can_be_made(folder)
    needed = [table for name in names for table in FIGURES.get(name, [])] + [name for name in names if name in TABLES]
    plans = _plans(needed, args.rows, options)
    gpu = args.gpu or (HERE if args.scale == "shapes" else MEASURED_GPU)
    computes = gpu == HERE if args.dry_run else not args.render
    if computes and args.dtype is None and (slow := _slow_dtypes(plans, options)):
        print(f"the scale's {slow[0]} is too slow on this processor; continuing with --dtype float32", file=sys.stderr)
        args.dtype = "float32"
        options = _options(args)
        plans = _plans(needed, args.rows, options)
    if args.dry_run:
        print_costs(list(plans.values()), gpu, options)
        return
    if not args.render:
        # 2. Download what is missing; then make images, all processes together.
        main = PartialState(cpu=options.device.type == "cpu")
        if not args.offline:
            with main.main_process_first():
                fetch_missing(_missing(plans), options.inputs, options.quiet)
            plans = _plans(needed, args.rows, options)
        jobs = {job.name: job for planned in plans.values() for job in planned.asked}
        available = [job for job in jobs.values() if not job.missing]
        with _bar(available, plans, options, main.is_main_process) as bar:
            made = make_all(available, args.batch_size, options, bar)
            if not main.is_main_process:
                return
            # 3. Scores, distances to the baseline, speed.
            measure_all(plans.values(), replace(options, quiet=True), bar)
        if "figure2" in names:
            measure_figure2(options)
        print(f"{counted(made, 'set')} of images made")

    # 4. Make the pages, from all measurements, here or elsewhere.
    _write_pages(names, plans, options)
    if (missing := _missing(plans)) and not args.render:  # the pages are written, but not all requested rows
        raise RunError(f"rows skipped; missing: {'; '.join(remedies(missing, options.inputs))}")


def _plans(names: list[str], rows: list[int] | None, options: Options) -> dict[str, Plan]:
    return {name: plan(load_table(name), rows, options) for name in dict.fromkeys(names)}


def _bar(available: list[Job], plans: dict[str, Plan], options: Options, is_main_process: bool) -> TableBar:
    shown = is_main_process and not options.quiet
    to_make = [job for job in available if not is_made(job)] if shown else []
    return TableBar(to_make, available, timed_jobs(plans.values(), options), options, shown)


def _slow_dtypes(plans: dict[str, Plan], options: Options) -> list[str]:
    """Dtypes of the requested rows in which the device is slow."""
    jobs = [job for planned in plans.values() for job in planned.asked]
    dtypes = {getattr(job.settings, "dtype", "float32") for job in jobs}
    return sorted(dtype for dtype in dtypes if not is_fast(dtype, options.device))


def _missing(plans: dict[str, Plan]) -> list[str]:
    """Names of the inputs that the requested rows lack."""
    jobs = [job for planned in plans.values() for job in planned.asked]
    return sorted({name for job in jobs for name in (*job.missing, *job.missing_for_scores)})


def _write_pages(names: list[str], plans: dict[str, Plan], options: Options) -> None:
    out, results = options.out, {name: results_of(planned, options) for name, planned in plans.items()}
    for name in names:
        if name in FIGURES:
            draw_figure(name, plans, results, options)
        else:
            write_text(out / f"{name}.md", markdown(plans[name], results[name], options))
            write_text(out / f"{name}.csv", as_csv(plans[name].table, results[name]))
    compared = _plans([claim.table for claim in load_claims()], None, options)
    found = {name: results_of(planned, options, count_macs=False) for name, planned in compared.items()}
    write_text(out / "claims.md", claims_markdown(compared, found))
    write_text(out / "README.md", readme(options))
    write_text(out / "index.html", page(sections(out), f"DeepCache's tables, scale {options.scale.name}"))
    print(f"written {out}: {', '.join(names)}, claims, index.html")


def _names(args: argparse.Namespace) -> list[str]:
    """The requested tables and figures. Raises ValueError for an unknown one, or a number out of range."""
    known = [*TABLES, *FIGURES]
    if unknown := [name for name in args.names if name not in (*known, "all")]:
        raise ValueError(f"there is no {unknown[0]}; there are {', '.join(known)}, and all")
    return known if "all" in args.names else list(dict.fromkeys(args.names))


def _options(args: argparse.Namespace) -> Options:
    """The options that all rows share. Raises ValueError for a device that is not available."""
    suffixes = [  # what makes images other than the scale's
        args.num_images and f"{args.num_images}-images", args.dtype, "original-seeds" if args.original_seeds else None,
    ]  # fmt: skip
    name = "-".join([args.scale, *filter(None, suffixes)])
    return Options(
        scale=load_scale(args.scale), work=args.work / args.scale, inputs=args.inputs,
        out=args.out or Path("results") / name, device=resolve_device(args.device), num_images=args.num_images,
        dtype=args.dtype, original_seeds=args.original_seeds, timed=not args.no_speed,
        speed_batch=args.speed_batch, repeats=args.repeats, quiet=args.quiet,
    )  # fmt: skip


def _rows(text: str) -> list[int]:
    rows: list[int] = []
    parse_one = numbers.whole(1, MOST_ROWS)
    for part in text.split(","):
        first, _, last = part.partition("-")
        rows += range(parse_one(first), parse_one(last or first) + 1)
    if not rows:
        raise argparse.ArgumentTypeError(f"is {text!r}; it must be a list of rows such as 1,3-5")
    return rows


def main(argv: list[str] | None = None) -> int:
    return run_cli(lambda: run(parser().parse_args(argv)), resumable=True)


if __name__ == "__main__":
    sys.exit(main())
