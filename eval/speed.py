"""Throughput of DeepCache, the baseline and competitors, in turn in one process: images/s and speed-up.

python -m eval.speed                                              the model shipped with this repository
python -m eval.speed --model stable-diffusion-v1-5/stable-diffusion-v1-5 --batch-sizes 1,8 --out results/speed.json
python -m eval.speed --competitors package,plms25,tomesd --intervals 1,3,5

Competitors: package (the authors' package DeepCache, at every interval), SCHEDULER and a number of steps such as
plms25, tomesd (merges half of the tokens; tomesd30 merges 30 %). Those not installed are left out with a note.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from common import numbers
from common.command_line import Parser, add_quiet_argument, run_cli
from common.device import add_device_arguments, resolve_device, resolve_dtype
from common.environment import versions
from common.files import atomic_write, check_can_be_written, write_json
from common.shipped import GUIDANCE, PROMPTS, SHAPES_SD
from common.timing import CallTimes, alternate, pairwise, spread, time_call
from common.words import counted
from pipelines import StableDiffusionPipeline
from pipelines.competitors import INSTALL, is_installed, package_enabled, stock_pipeline, tokens_merged
from pipelines.loading import SCHEDULERS, check_steps, load_pipeline, new_scheduler, place_pipeline
from unets import UNet2DConditionModel

from .counting.macs import count_steps, unet_inputs


@dataclass
class Variant:
    """One way to make the same number of images: `call(batch_size)` is timed, and within it the U-Net of `pipe`."""

    name: str
    pipe: Any
    call: Callable[[int], Any]


def measure(
    variants: Sequence[Variant],
    batch_size: int,
    *,
    repeats: int,
    warm_up: int,
    device: torch.device,
    progress: Callable[[str], None] = lambda name: None,
) -> list[dict[str, Any]]:
    """Times the variants in turn (A B C A B C …). The others' speed-ups are over the first.

    Returns:
        For each its name, `seconds` and `unet_seconds` of a call, and the same as `throughput` and `unet_throughput`
        in images/s; `speed_up` and `unet_speed_up` of the pairs; how many steps were full and retrieve steps.
    """

    def run(variant: Variant) -> tuple[float, CallTimes]:
        progress(variant.name)
        _, whole, (times,) = time_call([variant.pipe], lambda: variant.call(batch_size), device)
        return whole, times

    calls = [partial(run, variant) for variant in variants]
    alternate(calls, warm_up)
    rows: list[dict[str, Any]] = []
    first: dict[str, list[float]] = {}
    for variant, results in zip(variants, alternate(calls, repeats), strict=True):
        row: dict[str, Any] = {"name": variant.name, "batch_size": batch_size}
        seconds = {"": [whole for whole, _ in results], "unet_": [times.unet for _, times in results]}
        first = first or seconds
        for part, values in seconds.items():
            row[f"{part}seconds"] = spread(values)
            row[f"{part}throughput"] = batch_size / row[f"{part}seconds"]["median"]
            row[f"{part}speed_up"] = pairwise(first[part], values)
        times = results[0][1]
        row["full_steps"], row["retrieve_steps"] = len(times.full_steps), len(times.retrieve_steps)
        rows.append(row)
    return rows


def make_variants(
    pipe: Any, names: Sequence[str], call: dict[str, Any], *, intervals: Sequence[int], branch: int, seed: int
) -> tuple[list[Variant], list[str]]:
    """The baseline, DeepCache at each interval, and the competitors by name; and a note on each that was left out.

    Raises:
        ValueError: an unknown competitor, or one that does not fit.
    """
    stock = stock_pipeline(pipe)
    prompt = call["prompt"]

    def images(on: Any, batch_size: int, around: Any = None, **changes: Any) -> Any:
        generators = [torch.Generator().manual_seed(seed + k) for k in range(batch_size)]
        prompts = [prompt[k % len(prompt)] for k in range(batch_size)]
        arguments = {**call, "prompt": prompts, "generator": generators, "output_type": "pt", **changes}
        if around is None:
            return on(**arguments)
        with around(on):
            return on(**arguments)

    cached = [n for n in intervals if n > 1]
    variants = [Variant("baseline", pipe, partial(images, pipe))]
    for n in cached:
        cache = {"cache_interval": n, "cache_branch_id": branch}
        variants.append(Variant(f"DeepCache N={n}", pipe, partial(images, pipe, **cache)))
    notes = []
    for name in names:
        fewer = re.fullmatch(r"(.+?)(\d+)", name)
        merged = re.fullmatch(r"tomesd(\d*)", name)
        percent = int(merged[1] or 50) if merged else 50
        if not 0 < percent <= 75:
            raise ValueError(f"--competitors has {name}; tomesd merges between 1 and 75 % of the tokens")
        module = "DeepCache" if name == "package" else "tomesd" if merged else None
        if module is not None and not is_installed(module):
            notes.append(f"{name}: not measured, since it is not installed ({INSTALL[module]})")
        elif name == "package":
            for n in cached:
                around = partial(package_enabled, interval=n, branch=branch)
                variants.append(Variant(f"package N={n}", stock, partial(images, stock, around=around)))
        elif merged:
            around = partial(tokens_merged, ratio=percent / 100)
            variants.append(Variant(f"tomesd {percent} %", stock, partial(images, stock, around=around)))
        elif fewer and fewer[1] in SCHEDULERS and int(fewer[2]) > 0:
            check_steps(pipe, int(fewer[2]), f"--competitors has {name}, whose number of steps")
            scheduled = StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
            scheduled.scheduler = new_scheduler(fewer[1], pipe.scheduler.config)
            scheduled.set_progress_bar_config(disable=True)
            changes = {"num_inference_steps": int(fewer[2])}
            variants.append(Variant(f"{fewer[1]} {fewer[2]} steps", scheduled, partial(images, scheduled, **changes)))
        else:
            known = "package, tomesd, or a scheduler and its steps such as plms25"
            raise ValueError(f"--competitors has {name!r}; there are {known} ({', '.join(SCHEDULERS)})")
    for variant in variants:
        variant.pipe.set_progress_bar_config(disable=True)
    return variants, notes


def add_bounds(rows: list[dict[str, Any]], pipe: Any, size: Sequence[int], branch: int) -> None:
    """Adds to the rows with retrieve steps the speed-up expected from MACs, attention's matrix products counted."""
    tokens = pipe.tokenizer.model_max_length
    full, retrieve = count_steps(pipe.unet, unet_inputs(pipe.unet, *size, tokens=tokens), branch)
    for row in rows:
        if row["retrieve_steps"]:
            steps = row["full_steps"] + row["retrieve_steps"]
            run = row["full_steps"] * full.with_attention + row["retrieve_steps"] * retrieve.with_attention
            row["bound"] = steps * full.with_attention / run


def table(rows: list[dict[str, Any]]) -> str:
    """The measurements as a markdown table."""
    titles = ("batch", "", "images/s", "U-Net images/s", "speed-up", "least–greatest", "U-Net speed-up", "bound")
    lines = ["| " + " | ".join(titles) + " |", "|--:|:--|" + "--:|" * (len(titles) - 2)]
    for row in rows:
        speed = row["speed_up"]
        cells = [
            str(row["batch_size"]), row["name"], f"{row['throughput']:#.3g}", f"{row['unet_throughput']:#.3g}",
            f"{speed['median']:.2f}×", f"{speed['min']:.2f}–{speed['max']:.2f}",
            f"{row['unet_speed_up']['median']:.2f}×", f"{row['bound']:.2f}×" if "bound" in row else "",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def document(result: dict[str, Any]) -> str:
    """Table, setting and notes as a markdown file."""
    settings, machine = result["settings"], result["versions"]
    steps, threads = counted(settings["steps"], "step"), counted(machine["threads"], "thread")
    setting = (
        f"{steps} of {settings['scheduler']}, guidance scale {settings['guidance_scale']}, skip "
        f"branch m = {settings['branch']}, {settings['height']} × {settings['width']} pixels, {settings['dtype']}, "
        f"{machine['device']}, {threads}, torch {machine['torch']}. Medians of "
        f"{counted(settings['repeats'], 'round')}, all variants in turn in one process; a speed-up is the median of "
        "the ratios within a round; the bound is the ratio of MACs, matrix products of attention counted."
    )
    parts = [f"# Speed of {settings['model']}", table(result["rows"]), setting, *result["notes"]]
    return "\n\n".join(parts) + "\n"


def parser() -> Parser:
    p = Parser(prog="python -m eval.speed", description=__doc__)
    p.add_argument("--model", metavar="ID_OR_PATH", help="Stable Diffusion 1.x or 2.x (default: the shipped model)")
    p.add_argument(
        "--batch-sizes", type=numbers.wholes(1, 100_000), default=[1, 2, 4, 8], metavar="B,…", help="images per call"
    )
    p.add_argument("--steps", type=numbers.steps, default=50)
    p.add_argument("--scheduler", help=f"{', '.join(SCHEDULERS)} (default: the model's own)")
    p.add_argument(
        "--intervals", type=numbers.intervals, default=[1, 2, 3, 5, 10], metavar="N,…", help="1 is the baseline"
    )
    p.add_argument(
        "--branch", type=numbers.branch, default=1, metavar="m", help="skip branch of the cached feature, from 0"
    )
    p.add_argument("--competitors", default="", metavar="NAME,…", help="package, plms25, tomesd … (default: none)")
    p.add_argument("--prompt", action="append", help="can be repeated (default: examples)")
    p.add_argument("--guidance-scale", type=numbers.guidance, help="(default: 7.5; 2.5 for the shipped model)")
    p.add_argument("--height", type=numbers.pixels, help="pixels (default: the model's own)")
    p.add_argument("--width", type=numbers.pixels, help="pixels (default: the model's own)")
    p.add_argument("--repeats", type=numbers.repeats, default=3, help="timed rounds")
    p.add_argument("--warm-up", type=numbers.warm_up, default=1, metavar="ROUNDS", help="untimed rounds before those")
    p.add_argument("--seed", type=numbers.seed, default=42, help="image k starts from the noise of seed + k")
    add_device_arguments(p)
    p.add_argument("--channels-last", action="store_true", help="memory format channels_last for U-Net and VAE")
    p.add_argument("--out", type=Path, metavar="FILE", help="write this JSON file, and a table beside it as .md")
    add_quiet_argument(p)
    return p


def run(args: argparse.Namespace) -> None:
    # 1. Check what can be checked before a model is loaded.
    check_can_be_written(args.out)
    device = resolve_device(args.device)
    dtype = resolve_dtype(args.dtype, device)

    # 2. Load.
    shipped = args.model is None
    model = SHAPES_SD if shipped else args.model
    pipe = load_pipeline(StableDiffusionPipeline, model, dtype=dtype, scheduler=args.scheduler, quiet=args.quiet)
    assert isinstance(pipe.unet, UNet2DConditionModel)
    pipe.unet.check_branch(args.branch)
    check_steps(pipe, args.steps)
    place_pipeline(pipe, device, channels_last=args.channels_last, compiled=False, cpu_offload=False)
    scale = pipe.vae_scale_factor
    size = [(side or pipe.unet.config.sample_size * scale) for side in (args.height, args.width)]
    call = {
        "prompt": args.prompt or PROMPTS[shipped],
        "num_inference_steps": args.steps,
        "guidance_scale": GUIDANCE[shipped] if args.guidance_scale is None else args.guidance_scale,
        "height": size[0],
        "width": size[1],
    }
    names = [name for name in args.competitors.split(",") if name]
    variants, notes = make_variants(pipe, names, call, intervals=args.intervals, branch=args.branch, seed=args.seed)

    # 3. Measure.
    rows: list[dict[str, Any]] = []
    rounds = (args.warm_up + args.repeats) * len(args.batch_sizes)
    with tqdm(total=rounds * len(variants), leave=False, disable=args.quiet) as bar:
        for batch_size in args.batch_sizes:

            def progress(name: str, batch_size: int = batch_size) -> None:
                bar.set_description(f"batch {batch_size}, {name}")
                bar.update()

            rows += measure(
                variants, batch_size, repeats=args.repeats, warm_up=args.warm_up, device=device, progress=progress
            )
    add_bounds(rows, pipe, [side // scale for side in size], args.branch)

    # 4. Show and save.
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    settings |= {**call, "model": Path(model).name, "scheduler": type(pipe.scheduler).__name__}
    settings |= {"dtype": str(dtype).removeprefix("torch."), "device": str(device)}
    result = {"settings": settings, "notes": notes, "rows": rows, "versions": versions(device)}
    print(document(result), end="")
    if args.out:
        with atomic_write(args.out.with_suffix(".md")) as tmp_path:  # replaced only if the JSON file could be written
            tmp_path.write_text(document(result), encoding="utf-8")
            write_json(args.out, result)


def main(argv: list[str] | None = None) -> int:
    return run_cli(lambda: run(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
