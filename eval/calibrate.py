"""Finds which steps should be full, by measurements on a few images of a model, and tries the result on others.

python -m eval.calibrate --budget 2x                                     the shipped model, half the MACs
python -m eval.calibrate --quality 35 --branches 0,1,2 --out calibrated.json
python -m eval.calibrate --model stable-diffusion-v1-5/stable-diffusion-v1-5 --prompts parti --dtype float16
python -m eval.calibrate --forecast fit --out calibrated.json            for extrapolated features
python -m eval.calibrate --script ldm.sample --steps 100 --branches 0
python -m eval.calibrate --script ddpm.sample --steps 50 --branches 1,2

It prints the options to use. All options not listed below are the script's own, such as --model, --steps, --scheduler,
--guidance-scale, --batch-size, --device and --dtype. The features of all steps of a batch are in memory at once.

On images made with every step full, it measures for all pairs of steps i < j how much step j's predicted noise changes
if it retrieves step i's feature, weighted by how much the result changes with that noise. The schedule with the least
sum is found exactly, for every number of full steps. The sum ignores that an error also changes later steps, so the
schedules are tried: the same number of held-out images is made with each, and compared with the baseline's.

With --refresh-branches or --skip it also searches for steps of these kinds (eval/calibration/kinds.py), by simulated
annealing, and tries the uniform schedules of each kind for comparison. The script's --reuse-attention and
--reuse-guidance can be given with them: they enter the MACs and the trials. --refine RUNS continues from there with
that many real runs on the first images: each makes a small change, which is kept if the images get closer.

With --forecast, features are extrapolated from the last two cached ones. The error of that follows from the distances
between features (eval/calibration/forecast_errors.py); `fit` finds a weight for each step, and needs --out. Also tried
are the uniform schedule with the same forecast, or 1 instead of `fit`, and the best schedule for copies.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

from common import numbers
from common.command_line import Parser, add_quiet_argument, run_cli
from common.device import resolve_device
from common.environment import versions
from common.files import check_can_be_written, write_json
from ddpm import sample as ddpm_sample
from ldm import sample as ldm_sample
from pipelines.cache_options import EXTENSIONS
from unets.cache.config import CacheConfig

from . import generate
from .calibration import report
from .calibration.baseline import make_baseline
from .calibration.candidates import Trial, try_out
from .calibration.cost import step_macs
from .calibration.goals import best_within_budget, branches_within_budget, cheapest_of_quality
from .calibration.images import ImageMaker
from .calibration.influence import SamplingSettings, noise_schedule
from .calibration.kinds_measure import all_pairs, best_kinds_within_budget, cheapest_kinds_of_quality, refined
from .calibration.measure import BranchMeasurement, measure_branch
from .generation import text
from .generation.prompts import open_prompts

# Each has parser(), settings_of(args) and prepare(settings, device=…, quiet=…), which returns a Run.
SCRIPTS: dict[str, ModuleType] = {
    "eval.generate": generate,
    "ldm.sample": ldm_sample,
    "ddpm.sample": ddpm_sample,
}
SCHEDULE_OPTIONS = (
    "cache_interval", "cache_branch_id", "non_uniform", "center", "pow", "cache_steps", "calibrated", "zero_cache",
    "png",
)  # fmt: skip
REUSED = ("reuse_attention", "reuse_guidance")
COMPARED = ("model", "scheduler", "steps", "guidance_scale", "negative_prompt", "height", "width", "device", "dtype")
MOST_STEPS = 300  # with a forecast, whose table of errors is cubic in the steps


def parser() -> Parser:
    p = Parser(prog="python -m eval.calibrate", description=__doc__, allow_abbrev=False)
    p.add_argument("--script", choices=list(SCRIPTS), default="eval.generate", help="script to calibrate")
    p.add_argument("--branches", type=numbers.branches, metavar="m,…", help="skip branches (default: the script's own)")
    goal = p.add_mutually_exclusive_group()
    goal.add_argument(
        "--budget", type=_times, metavar="2.5x", help="reduction of the U-Net's MACs to reach (default: 2x)"
    )
    goal.add_argument(
        "--quality", type=numbers.real(1, 200), metavar="dB", help="lowest PSNR to the images without a cache"
    )
    p.add_argument(
        "--forecast", type=_forecast, default=0.0, metavar="g|fit",
        help="extrapolate features: 1 is the straight line through the last two cached; fit finds g for each step",
    )  # fmt: skip
    p.add_argument(
        "--refresh-branches", type=numbers.branches, metavar="m,…",
        help="also search for refresh steps, at the best of these deeper branches",
    )  # fmt: skip
    p.add_argument("--skip", action="store_true", help="also search for steps to skip")
    p.add_argument(
        "--refine", type=numbers.whole(1, 100_000), metavar="RUNS",
        help="with either of these, try this many small changes to the schedule, each in a real run",
    )  # fmt: skip
    p.add_argument(
        "--num-images", type=numbers.images, default=8, help="images to calibrate on, and number of others for trials"
    )
    p.add_argument("--out", type=Path, metavar="FILE", help="write the calibration to this JSON file")
    add_quiet_argument(p)
    return p


def _times(text: str) -> float:
    budget = numbers.real(1, 1000)(text.removesuffix("x"))
    if budget == 1:
        raise argparse.ArgumentTypeError("is 1x, a run without a cache; give more, such as 2.5x")
    return budget


def _forecast(text: str) -> float | str:
    return text if text == "fit" else numbers.forecast(text)


def check_arguments(args: argparse.Namespace) -> None:
    """Raises ValueError naming the first option of this script that is out of range."""
    check_can_be_written(args.out)
    if args.forecast == "fit" and args.out is None:
        raise ValueError("--forecast fit needs --out FILE, from which the command reads each step's weight")
    if args.skip or args.refresh_branches:
        if args.forecast == "fit":
            raise ValueError("--forecast fit supports only full and retrieve steps; with other kinds give a number")
        if args.out is None:
            raise ValueError("--skip and --refresh-branches need --out FILE, from which the command reads the steps")
    elif args.refine:
        raise ValueError("--refine needs --skip or --refresh-branches")


def check_options(args: argparse.Namespace, options: argparse.Namespace, script_parser: Parser) -> dict[str, bool]:
    """What retrieve steps reuse besides features, of `REUSED`.

    Raises:
        ValueError: naming the first of the script's options that is out of range, or not allowed here.
    """
    allowed = REUSED if args.skip or args.refresh_branches else ()
    for name in (*SCHEDULE_OPTIONS, *EXTENSIONS):
        if name in allowed:
            continue
        if getattr(options, name, None) != script_parser.get_default(name):
            reason = (
                "it is not calibrated, and can be added to the command that this prints"
                if name in EXTENSIONS
                else "the schedule is the result of the calibration"
            )
            raise ValueError(f"leave out --{name.replace('_', '-')}; {reason}")
    if options.steps < 2:
        raise ValueError(f"--steps is {options.steps}; give at least 2: a single step leaves nothing to calibrate")
    if args.forecast and options.steps > MOST_STEPS:
        raise ValueError(f"--steps is {options.steps}; with --forecast, runs of up to {MOST_STEPS} can be calibrated")
    return {name: True for name in allowed if getattr(options, name, False)}


def check_skipping(options: argparse.Namespace) -> None:
    """Raises ValueError for a sampler that does not support skipped steps."""
    sampler = getattr(options, "scheduler", None) or getattr(options, "sampler", None)
    eta: float = getattr(options, "eta", 0.0)
    if sampler in ("ddpm", "euler-a", "dpm++-sde", "lcm", "heun") or eta:
        what = f"--eta {eta:g}" if eta else sampler
        raise ValueError(f"--skip needs a sampler that adds no noise and makes one call per step, not {what}")


def cache_options(args: argparse.Namespace, chosen: Trial) -> list[str]:
    """The options for the chosen schedule."""
    if args.out:
        return ["--calibrated", str(args.out)]
    cache = ["--cache-branch-id", str(chosen.branch), "--cache-steps", ",".join(map(str, chosen.cache_steps))]
    return cache + (["--forecast", f"{chosen.cache.forecast:g}"] if chosen.cache.forecast else [])


def commands_of(
    args: argparse.Namespace, passed: Sequence[str], options: argparse.Namespace, chosen: Trial
) -> list[str]:
    """Commands for the chosen schedule: the script that was calibrated, and the one that compares, if any."""
    cache = cache_options(args, chosen)
    commands = [["python", "-m", args.script, *passed, *cache]]
    if args.script == "eval.generate":
        shared = {name: getattr(options, name) for name in COMPARED if getattr(options, name) is not None}
        given = [word for name, value in shared.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        commands.append(["python", "stable_diffusion.py", *given, *cache])
    return [shlex.join(command) for command in commands]


def run(args: argparse.Namespace, passed: Sequence[str]) -> None:
    # 1. Check, and load the model for runs in which every step is full.
    check_arguments(args)
    script = SCRIPTS[args.script]
    script_parser = script.parser()
    options = script_parser.parse_args(passed)
    reused = check_options(args, options, script_parser)
    settings: SamplingSettings = replace(script.settings_of(options), cache=CacheConfig())
    calibration_images, held_out = range(args.num_images), range(args.num_images, 2 * args.num_images)
    if isinstance(settings, text.Settings):
        open_prompts(settings.prompts, quiet=args.quiet).first(held_out.stop)  # raises if there are not as many
    device = resolve_device(options.device)
    prepared = script.prepare(settings, device=device, quiet=args.quiet)
    attention = "reuse_attention" in reused
    branches = list(dict.fromkeys(args.branches or [script_parser.get_default("cache_branch_id")]))
    refresh_branches = list(dict.fromkeys(args.refresh_branches or []))
    for branch in (*branches, *refresh_branches):
        prepared.unet.check_branch(branch)
    if attention:
        for branch in branches:
            prepared.unet.check_attention(branch)
    if args.skip:
        check_skipping(options)

    # 2. Make the held-out images without a cache.
    maker = ImageMaker(prepared, options.batch_size, args.quiet)
    baseline = make_baseline(maker, held_out, *noise_schedule(settings))
    macs = {branch: step_macs(prepared.unet, branch, baseline.calls, attention) for branch in branches}

    # 3. Measure the branches, and try the resulting schedules.
    def measure(branch: int) -> BranchMeasurement:
        return measure_branch(maker, calibration_images, baseline, branch, macs[branch], args.forecast)

    try_one = partial(try_out, maker=maker, baseline=baseline)
    if args.skip or refresh_branches:
        refresh_macs = {branch: step_macs(prepared.unet, branch, baseline.calls) for branch in refresh_branches}
        pairs = all_pairs(maker, calibration_images, baseline, macs, refresh_macs, args.skip, args.forecast, reused)
        if args.quality is None:
            tried, chosen = best_kinds_within_budget(pairs, args.budget or 2, try_one)
        else:
            tried, chosen = cheapest_kinds_of_quality(pairs, args.quality, try_one)
        if args.refine:
            tried.append(refined(pairs, chosen, maker, calibration_images, args.refine, try_one))
            chosen = max(chosen, tried[-1], key=lambda one: one.psnr)
    elif args.quality is None:
        budget = args.budget or 2
        measured = [measure(branch) for branch in branches_within_budget(macs, baseline.positions, budget)]
        tried, chosen = best_within_budget(measured, budget, try_one)
    else:
        measured = [measure(branch) for branch in branches]
        tried, chosen = cheapest_of_quality(measured, args.quality, try_one)

    # 4. Report.
    command, *others = commands_of(args, passed, options, chosen)
    print(f"{report.table(tried, len(baseline.calls))}\n{report.summary(chosen)}")
    if (warning := report.warning(chosen)) is not None:
        print(warning)
    print(command)
    for other in others:
        print(f"side by side with the baseline: {other}")
    if args.out:
        found = report.to_json(
            script=args.script,
            model=str(getattr(settings, "model", None) or getattr(settings, "checkpoint", None) or "shipped"),
            steps=settings.steps,
            recorded=prepared.image_set.settings,
            num_images=args.num_images,
            tried=tried,
            chosen=chosen,
            command=command,
        )
        write_json(args.out, found | {"versions": versions(device)})
        print(f"Written {args.out}")


def main(argv: list[str] | None = None) -> int:
    return run_cli(lambda: run(*parser().parse_known_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
