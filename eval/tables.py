"""The paper's tables and figures, each with one command: images, scores, operations and speed, beside the printed ones.

python -m eval.tables all                                        the shipped models, in under an hour on two cores
python -m eval.tables table3 --scale paper --dry-run             what it takes, and what is missing
python -m eval.tables table1 table4 --scale paper --rows 1,7-9
accelerate launch -m eval.tables table1 --scale paper            on several GPUs

What is there is not made again: a killed run is continued by the same command, and tables share rows. Results are
Markdown, CSV and PNG files in results/SCALE, and a page over them, index.html.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from tqdm import tqdm

from common.command_line import Formatter, RunError, at_least, run_cli
from common.device import DTYPES, resolve_device
from common.environment import versions
from common.files import write_text

from . import report
from .paper import figures
from .paper.estimate import print_plan
from .paper.output import as_csv, markdown
from .paper.results import is_made, make_images, psnr, scores, speed
from .paper.rows import (
    SCALES,
    TABLES,
    Job,
    Options,
    baseline_of,
    job_of,
    load_scale,
    load_table,
    macs_of,
    schedule_row,
)

FIGURES = {"figure2": [], "figure4": [], "figure6": ["table13", "table14"], "figure7": ["table13"]}
Result = list[dict[str, Any]]


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
    at_least(args, num_images=2, batch_size=1, speed_batch=1, repeats=1)
    known = [*TABLES, *FIGURES]
    if unknown := [name for name in args.names if name not in (*known, "all")]:
        raise ValueError(f"there is no {unknown[0]}; there are {', '.join(known)}, and all")
    names = known if "all" in args.names else list(dict.fromkeys(args.names))
    dtype = args.dtype or "float32"
    device = resolve_device(args.device)
    options = Options(
        args.scale, args.work, args.inputs, args.num_images, args.device, args.dtype
    )  # fmt: skip
    needed = list(
        dict.fromkeys([t for name in names for t in FIGURES.get(name, [])] + [n for n in names if n in TABLES])
    )
    tables = {name: load_table(name) for name in needed}
    for name, table in tables.items():
        table["heading"] = f"Table {name.removeprefix('table')}: {table['title']}"
        chosen = table["chosen"] = args.rows or range(1, len(table["rows"]) + 1)
        if max(chosen) > len(table["rows"]):
            raise ValueError(f"--rows has {max(chosen)}, and {name} has {len(table['rows'])} rows")
        table["jobs"] = [
            job_of(row["run"], options) if "run" in row and k in chosen else None
            for k, row in enumerate(table["rows"], 1)
        ]
    if args.dry_run:
        print_plan(tables, device, dtype)
        return

    # 2. Images, all processes together.
    main = PartialState(cpu=device.type == "cpu")
    jobs = {job.out: job for table in tables.values() for job in table["jobs"] if job is not None}
    ready = [job for job in jobs.values() if not job.missing]
    to_make = [job for job in ready if not is_made(job)]
    for k, job in enumerate(to_make, 1):
        if main.is_main_process:
            print(f"{k} of {len(to_make)}: {job.command}", flush=True)
        make_images(job, args.batch_size or job.model["batch_size"], args.quiet)
    if not main.is_main_process:
        return

    # 3. Scores, speed and operations, and the tables.
    out = args.out or Path("results") / args.scale
    results: dict[str, Result] = {}
    for name in needed:
        results[name] = table_results(tables[name], args, options, device)
        if name in names:
            _write(out / f"{name}.md", markdown(tables[name], results[name], _about(tables[name], args, options)))
            _write(out / f"{name}.csv", as_csv(tables[name], results[name]))

    # 4. Figures, and the page over all.
    for name in names:
        if name in FIGURES:
            draw_figure(name, tables, results, options, out, args.quiet)
    _write(out / "README.md", _readme(args, device))
    page = report.page(report.sections(out), f"DeepCache's tables, scale {args.scale}")
    _write(out / "index.html", page)
    print(f"{len(to_make)} sets of images made; written {out}: {', '.join(names)}, index.html")
    if missing := {text for job in jobs.values() for text in job.missing}:
        rows = sum(bool(job.missing) for job in jobs.values())
        raise RunError(f"{rows} of {len(jobs)} sets were not made, for want of {'; '.join(sorted(missing))}")


def table_results(table: dict[str, Any], args: argparse.Namespace, options: Options, device: torch.device) -> Result:
    """Our numbers for each row of a table, as far as it can be run."""
    if table["kind"] == "schedules":
        return [schedule_row(row["schedule"]) for row in table["rows"]]
    found: Result = []
    models = load_scale("paper")["models"]
    for row, job in zip(tqdm(table["rows"], desc=table["heading"][:9], disable=args.quiet), table["jobs"], strict=True):
        result: dict[str, Any] = {}
        if "macs_g" in table["columns"] and "run" in row:  # of the published layout, which needs no weights
            result["macs_g"] = macs_of(row["run"], models[row["run"]["model"]]["layout"], table["macs_over"])
        if job is not None and not job.missing:
            result |= scores(job, args.scale, device, args.quiet)
            result["psnr"] = psnr(job, baseline_of(job, options))
            if "throughput" in table["columns"] and not args.no_speed:
                result |= speed_of(row["run"], job, args, options, device)
        found.append(result)
    return found


def speed_of(
    run: dict[str, Any], job: Job, args: argparse.Namespace, options: Options, device: torch.device
) -> dict[str, Any]:
    """The speed of a row; two sets of prompts on one model share it."""
    same = job_of({**run, "model": job.model.get("speed_of", run["model"])}, options)
    assert same is not None
    baseline = baseline_of(same, options, same.model.get("speed_over"))
    return speed(
        same, baseline, options.work / options.scale, batch_size=args.speed_batch, repeats=args.repeats,
        device=device, quiet=args.quiet,
    )  # fmt: skip


def draw_figure(
    name: str, tables: dict[str, Any], results: dict[str, Result], options: Options, out: Path, quiet: bool
) -> None:
    """One figure into `out`, if what it needs is there."""
    if name == "figure4":
        figures.figure4(out, quiet)
    elif name == "figure2":
        models = load_scale(options.scale)["models"]
        chosen = [m for m in ("ldm4", "ddpm-bedroom", "ddpm-cifar10", "sd15-parti") if m in models]
        jobs = {m: job_of({"model": m, **models[m]["baseline"]}, options) for m in chosen}
        there = {m: job for m, job in jobs.items() if job is not None and not job.missing}
        if there and not all((out / f"figure2-{m}.png").is_file() for m in there):
            figures.figure2(there, out, quiet)
    elif name == "figure6":
        figures.figure6(
            {
                "PartiPrompts": (tables["table13"], results["table13"]),
                "COCO 2017": (tables["table14"], results["table14"]),
            },
            out,
        )
    else:
        rows = [
            (row["name"].removeprefix("uniform ").removesuffix(" steps"), job)
            for row, job in zip(tables["table13"]["rows"], tables["table13"]["jobs"], strict=True)
            if row["name"].startswith(("PLMS 50", "uniform")) and job is not None and is_made(job)
        ]
        if rows:
            figures.figure7(rows, out)


def _about(table: dict[str, Any], args: argparse.Namespace, options: Options) -> list[str]:
    """What a reader of the table must know of how our numbers came about."""
    if table["kind"] == "schedules":
        return ["Counted here, exactly; nothing of it depends on weights."]
    models = {row["run"]["model"] for row in table["rows"] if "run" in row}
    scale = load_scale(args.scale)
    notes = []
    if args.scale == "shapes":
        counts = sorted({job.num_images for job in table["jobs"] if job is not None})
        notes.append(f"Here: the shipped models, {' and '.join(map(str, counts))} images. {scale['about']}")
    if "macs_g" in table["columns"]:
        notes.append(
            "MACs are of the published layouts, counted without weights; ✓ is the printed number, to its digits."
        )
    if missing := sorted(models - scale["models"].keys()):
        notes.append(f"No model stands for {', '.join(missing)} at this scale.")
    if others := [str(k) for k, row in enumerate(table["rows"], 1) if "run" not in row]:
        notes.append(f"Rows {', '.join(others)} are of other methods or other papers and are not run.")
    for k, job in enumerate(table["jobs"], 1):
        if job is not None and job.missing:
            notes.append(f"Row {k} was not run, for want of {'; '.join(job.missing)}.")
    return notes


def _readme(args: argparse.Namespace, device: torch.device) -> str:
    machine = ", ".join(f"{name} {value}" for name, value in versions(device).items())
    scale = load_scale(args.scale)
    seeds = "image k of a set starts from the noise of (seed, k), seed 0, and 1 for COCO's stand-in"
    return (
        f"# The paper's tables, scale {args.scale}\n\n{scale['about']}\n\n"
        f"Regenerate all of it with `python -m eval.tables all --scale {args.scale}`. Seeds: {seeds}. "
        f"Speed: batches of {args.speed_batch}, whole calls, medians of {args.repeats} in turn with the baseline.\n\n"
        f"Machine of the last run: {machine}.\n"
    )


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


def _write(path: Path, text: str) -> None:
    write_text(path, text)


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return run_cli(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
