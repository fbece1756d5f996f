"""Which steps should be full: found from a few images of a model, and tried on others.

python -m eval.calibrate --budget 2x                                     the shipped model, half the operations
python -m eval.calibrate --quality 35 --branches 0,1,2 --out calibrated.json
python -m eval.calibrate --model stable-diffusion-v1-5/stable-diffusion-v1-5 --prompts parti --dtype float16
python -m eval.calibrate --forecast fit --out calibrated.json            for features that are carried on
python -m eval.calibrate --script ldm.sample --steps 100 --branches 0
python -m eval.calibrate --script ddpm.sample --steps 50 --branches 1,2

It prints the options to use. All options besides those below are the script's own, such as --model, --steps,
--scheduler, --guidance-scale, --batch-size, --device and --dtype; features of all steps of a batch are held at once.

On images made with every step full, it measures for all pairs of steps i < j how far step j's predicted noise moves if
it retrieves step i's feature, weighted with how much the result moves by it. The schedule with the least sum is found
exactly, for every number of full steps. A feature that is off moves later steps too, which the sum leaves out: so what
was found is made, and measured, on as many other images.

With --forecast it is the schedule for features that are carried on from the last two kept. What that costs follows from
the distances of the features (eval.forecast_errors); `fit` finds a number for each step, which --out is needed for. The
uniform schedule is then tried with the same forecast, with 1 instead of `fit`, and so is the best one for copies.
"""

from __future__ import annotations

import argparse
import importlib
import math
import re
import shlex
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from common.command_line import Formatter, RunError, at_least, run_cli, whole_numbers
from common.files import write_json
from common.shipped import SHAPES_SD
from image_sets.batches import Batch, to_uint8
from image_sets.generate import Run
from pipelines.cache_options import BEYOND
from pipelines.loading import MIRRORS

from .calibration.forecast_errors import (
    forecast_errors,
    schedule_errors,
    schedule_gains,
    sensitivity,
    squared_distances,
)
from .calibration.search import all_forecast_schedules, all_schedules, best_schedule, total_error
from .calibration.step_errors import calls_of, influence, noise_errors, schedule
from .counting.macs import count_steps, unet_inputs

SCRIPTS = ("eval.generate", "ldm.sample", "ddpm.sample")
MOST_STEPS = 300  # for a forecast, whose errors are a table of the third power


@dataclass
class Candidate:
    """A schedule. PSNR is in dB to the images without a cache, the median of the images it was tried on."""

    branch: int
    kind: str  # calibrated; or with as many full steps uniform, or, for a forecast, calibrated for copies
    cache_steps: list[int]
    speed_up: float  # in operations of the U-Net, matrix products of attention counted
    predicted: float
    psnr: float | None = None
    forecast: float | list[float] = 0.0  # g, or that of each call


def spread_evenly(positions: int, k: int) -> list[int]:
    """k full steps as even as can be; every N-th where k divides the number of positions."""
    return [i * positions // k for i in range(k)]


def least_k(enough: Callable[[int], bool], most: int) -> int | None:
    """The least k of 1 to `most` that is enough, if all above one that is are too; None if none is."""
    low, high = 1, most + 1
    while low < high:
        middle = (low + high) // 2
        if enough(middle):
            high = middle
        else:
            low = middle + 1
    return low if low <= most else None


class Calibration:
    """A sampling script's run, the table of errors of each branch, and the schedules tried on other images."""

    def __init__(self, run: Run, args: argparse.Namespace, options: argparse.Namespace) -> None:
        self.run, self.seed, self.batch_size, self.quiet = run, options.seed, options.batch_size, args.quiet
        self.guidance = run.image_set.settings.get("guidance_scale", 1.0)
        self.known, self.others = range(args.num_images), range(args.num_images, 2 * args.num_images)
        made: list[np.ndarray] = []
        with torch.no_grad():
            calls = calls_of(lambda: made.append(self.make(self.others, "baseline")), run.unet)
        (self.baseline,) = made
        self.calls = calls[: len(calls) // len(self.batches(self.others))]
        plms = "plms" in (getattr(options, "scheduler", None), getattr(options, "sampler", None))
        self.positions = len(self.calls) - plms  # the one call more that PLMS makes always retrieves
        noise = noise_schedule(args.script, getattr(options, "model", None))
        self.weights = influence([call.timestep for call in self.calls], *noise)
        self.forecast = args.forecast
        self.tables: dict[int, list[tuple[list[int], float]]] = {}
        self.errors: dict[int, np.ndarray] = {}  # of each two steps
        self.distances: dict[int, np.ndarray] = {}  # of each two steps' features, squared
        self.by_feature: dict[int, np.ndarray] = {}  # how far the result moves with the feature, at each call
        self.operations: dict[int, tuple[int, int]] = {}

    def batch(self, indices: Sequence[int]) -> Batch:
        return Batch.of(self.seed, list(indices))

    def batches(self, indices: Sequence[int]) -> list[Batch]:
        starts = range(0, len(indices), self.batch_size)
        return [self.batch(indices[k : k + self.batch_size]) for k in starts]

    def make(self, indices: Sequence[int], what: str) -> np.ndarray:
        """Images uint8 (B, H, W, 3)."""
        bar = tqdm(self.batches(indices), desc=what, leave=False, disable=self.quiet)
        return np.concatenate([to_uint8(self.run.make(batch), batch.indices) for batch in bar])

    def speed_up(self, branch: int, k: int) -> float:
        """With k full steps, in operations."""
        if branch not in self.operations:
            call, unet = self.calls[0], self.run.unet
            tokens = call.context[1] if call.context else 77
            macs = count_steps(unet, unet_inputs(unet, *call.sample[-2:], tokens=tokens), branch)
            self.operations[branch] = macs[0].with_attention, macs[1].with_attention
        full, retrieve = self.operations[branch]
        return len(self.calls) * full / (k * full + (len(self.calls) - k) * retrieve)

    def schedules(self, branch: int) -> list[tuple[list[int], float]]:
        """The best schedule of each number of full steps and its predicted error, measured at the first call."""
        if branch not in self.tables:
            total, distances = np.zeros((2, len(self.calls), len(self.calls)))
            bar = tqdm(self.batches(self.known), desc=f"errors, m = {branch}", leave=False, disable=self.quiet)
            with torch.no_grad():
                for batch in bar:
                    make, size, features = partial(self.run.make, batch), len(batch.indices), list[Tensor]()
                    total += size * noise_errors(make, self.run.unet, branch, size, self.guidance, features)
                    if self.forecast:
                        distances += size * squared_distances(features)
            # Neighbouring steps retrieve the same feature and are off in much the same direction: lengths add up.
            self.errors[branch] = np.sqrt(total[: self.positions] / len(self.known)) * self.weights
            self.distances[branch] = distances / len(self.known)
            if not (np.isfinite(self.errors[branch]).all() and np.isfinite(distances).all()):
                raise RunError("the U-Net's predictions hold values that are not finite; try --dtype float32")
            if self.forecast:
                noise = total / len(self.known)
                self.by_feature[branch] = np.sqrt(sensitivity(noise, self.distances[branch])) * self.weights
                of_features = forecast_errors(self.distances[branch], self.forecast, len(self.known))
                of_features = of_features[: self.positions, : self.positions]
                self.tables[branch] = all_forecast_schedules(np.sqrt(of_features) * self.by_feature[branch])
            else:
                self.tables[branch] = all_schedules(self.errors[branch])
        return self.tables[branch]

    def calibrated(self, branch: int, k: int) -> Candidate:
        return self._candidate(branch, "calibrated", self.schedules(branch)[k - 1][0], self.forecast)

    def others_like(self, candidate: Candidate) -> list[Candidate]:
        """With as many full steps: the uniform schedule, and for a forecast the best one for copies."""
        branch, k = candidate.branch, len(candidate.cache_steps)
        steady = 1.0 if self.forecast == "fit" else self.forecast
        others = [self._candidate(branch, "uniform", spread_evenly(self.positions, k), steady)]
        if self.forecast:
            steps, _ = best_schedule(self.errors[branch], k)
            others.append(self._candidate(branch, "for copies", steps, self.forecast))
        return [one for one in others if (one.cache_steps, one.forecast) != (candidate.cache_steps, candidate.forecast)]

    def _candidate(self, branch: int, kind: str, steps: list[int], forecast: float | str) -> Candidate:
        g: float | list[float] = forecast if isinstance(forecast, float) else []
        if forecast == "fit":
            g = schedule_gains(self.distances[branch], steps, len(self.known))
        if forecast:
            gains = g if isinstance(g, list) else [g] * len(self.calls)
            of_features = schedule_errors(self.distances[branch], steps, gains)
            predicted = float((np.sqrt(of_features) * self.by_feature[branch]).sum())
        else:
            predicted = total_error(self.errors[branch], steps)
        return Candidate(branch, kind, steps, self.speed_up(branch, len(steps)), predicted, forecast=g)

    def try_out(self, candidate: Candidate) -> float:
        """Measures the candidate's PSNR."""
        with (
            torch.no_grad(),
            schedule(self.run.unet, candidate.branch, candidate.cache_steps, len(self.calls), candidate.forecast),
        ):
            images = self.make(self.others, f"m = {candidate.branch}, {len(candidate.cache_steps)} full steps")
        squared = ((images.astype(np.float64) - self.baseline) ** 2).mean((1, 2, 3)).clip(1e-12)
        candidate.psnr = statistics.median((-10 * np.log10(squared / 255**2)).tolist())
        return candidate.psnr


def within_budget(
    calibration: Calibration, branches: Sequence[int], budget: float
) -> tuple[list[Candidate], Candidate]:
    """All that was tried, and the one that is closest to the baseline.

    Raises:
        ValueError: no branch makes the run that much faster.
    """
    numbers = {}
    for branch in branches:
        allowed = [k for k in range(1, calibration.positions) if calibration.speed_up(branch, k) >= budget]
        if allowed:
            numbers[branch] = allowed[-1]
    if not numbers:
        most = max(calibration.speed_up(branch, 1) for branch in branches)
        raise ValueError(f"--budget {budget:g}x is out of reach: with one full step these branches come to {most:.2f}x")
    tried = []
    for branch, k in numbers.items():
        calibrated = calibration.calibrated(branch, k)
        for one in (calibrated, *calibration.others_like(calibrated)):
            calibration.try_out(one)
            tried.append(one)
    return tried, max(tried, key=lambda one: one.psnr or 0)


def of_quality(calibration: Calibration, branches: Sequence[int], quality: float) -> tuple[list[Candidate], Candidate]:
    """All that was tried, and the one of that quality with the least operations.

    Raises:
        RunError: no schedule has that quality.
    """
    tried: list[Candidate] = []
    for branch in branches:

        def enough(k: int, branch: int = branch) -> bool:
            tried.append(calibration.calibrated(branch, k))
            return calibration.try_out(tried[-1]) >= quality

        least_k(enough, calibration.positions - 1)
    good = [one for one in tried if (one.psnr or 0) >= quality]
    if not good:
        best = max(one.psnr or 0 for one in tried)
        raise RunError(f"no schedule reaches --quality {quality:g}; the best that was tried has {best:.1f} dB")
    chosen = max(good, key=lambda one: one.speed_up)
    for one in calibration.others_like(chosen):
        calibration.try_out(one)
        tried.append(one)
    return tried, chosen


def noise_schedule(script: str, model: str | None) -> tuple[Tensor, str]:
    """ᾱ of the training's timesteps, and what the U-Net predicts."""
    if script == "ddpm.sample":
        from ddpm.sampler import alphas_cumprod

        return alphas_cumprod()[1:], "epsilon"
    if script == "ldm.sample":
        from ldm.checkpoint import new_scheduler

        return new_scheduler().alphas_cumprod, "epsilon"
    name = SHAPES_SD if model is None else MIRRORS.get(model, model)
    scheduler = diffusers.DDPMScheduler.from_pretrained(name, subfolder="scheduler")
    return scheduler.alphas_cumprod, scheduler.config.prediction_type


def report(tried: Sequence[Candidate], calls: int) -> str:
    """A table to read."""
    lines = [f"{'m':>3}{'full':>9}  {'schedule':<11}{'operations':>11}{'predicted error':>17}{'PSNR':>9}"]
    for one in tried:
        lines.append(
            f"{one.branch:>3}{len(one.cache_steps):>5}/{calls:<4} {one.kind:<11}{one.speed_up:>9.2f} ×"
            f"{one.predicted:>17.4g}{one.psnr:>6.2f} dB"
        )
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m eval.calibrate", description=__doc__, formatter_class=Formatter, allow_abbrev=False
    )
    p.add_argument("--script", choices=SCRIPTS, default="eval.generate", help="whose images and options they are")
    p.add_argument("--branches", type=whole_numbers, metavar="m,…", help="to be tried (default: the script's own)")
    goal = p.add_mutually_exclusive_group()
    goal.add_argument(
        "--budget", type=_times, metavar="2.5x", help="by how much operations of the U-Net are to fall (default: 2x)"
    )
    goal.add_argument("--quality", type=float, metavar="dB", help="the least PSNR to the images without a cache")
    p.add_argument(
        "--forecast", type=_forecast, default=0.0, metavar="g|fit",
        help="for features that are carried on: 1 is the straight line through the last two; fit finds g for each step",
    )  # fmt: skip
    p.add_argument("--num-images", type=int, default=8, help="to calibrate on; as many others are to try the result on")
    p.add_argument("--out", type=Path, metavar="FILE", help="write what was found to this JSON file")
    p.add_argument("--quiet", action="store_true", help="no progress bars")
    return p


def _times(text: str) -> float:
    if not re.fullmatch(r"\d+(\.\d*)?x?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a speed-up such as 2.5x")
    return float(text.rstrip("x"))


def _forecast(text: str) -> float | str:
    try:
        return text if text == "fit" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number such as 1 nor fit") from None


def options_of(args: argparse.Namespace, passed: Sequence[str]) -> tuple[Any, argparse.Namespace]:
    """The sampling script, and its options for a run in which every step is full.

    Raises:
        ValueError: an option of this script or of that one that is out of range.
    """
    at_least(args, num_images=1)
    if args.out and args.out.is_dir():
        raise ValueError(f"--out {args.out} is a directory; name a file")
    if args.budget is not None and args.budget <= 1:
        raise ValueError(f"--budget is {args.budget:g}x; it must be above 1x")
    if args.quality is not None and not (math.isfinite(args.quality) and args.quality > 0):
        raise ValueError(f"--quality is {args.quality:g} dB; it must be above 0")
    if args.forecast == "fit" and args.out is None:
        raise ValueError("--forecast fit needs --out FILE, which the command reads each step's number from")
    if args.forecast != "fit" and not math.isfinite(args.forecast):
        raise ValueError(f"--forecast is {args.forecast}; it must be a number such as 1, or fit")
    script = importlib.import_module(args.script)
    options = script.parser().parse_args([*passed, *(["--quiet"] if args.quiet else [])])
    given = script.parser().parse_args([])
    names = ("cache_interval", "cache_branch_id", "non_uniform", "center", "pow", "cache_steps", "calibrated",
             "zero_cache", "png")  # fmt: skip
    for name in (*names, *BEYOND):
        if getattr(options, name, None) != getattr(given, name, None):
            reason = (
                "it is not tried here, and can be added to the command that this prints"
                if name in BEYOND
                else "the schedule is what is looked for"
            )
            raise ValueError(f"leave out --{name.replace('_', '-')}; {reason}")
    at_least(options, steps=2, batch_size=1)
    if args.forecast and options.steps > MOST_STEPS:
        raise ValueError(f"--steps is {options.steps}; with --forecast, runs of up to {MOST_STEPS} can be calibrated")
    options.cache_interval, options.num_images = 1, 2 * args.num_images
    args.branches = args.branches or [given.cache_branch_id]
    return script, options


def run(args: argparse.Namespace, passed: Sequence[str]) -> None:
    script, options = options_of(args, passed)
    run = script.prepare(options)
    for branch in args.branches:
        run.unet.check_branch(branch)
    calibration = Calibration(run, args, options)
    if args.quality is None:
        tried, chosen = within_budget(calibration, args.branches, args.budget or 2)
    else:
        tried, chosen = of_quality(calibration, args.branches, args.quality)
    if args.out:
        cache = ["--calibrated", str(args.out)]
    else:
        steps = ",".join(map(str, chosen.cache_steps))
        cache = ["--cache-branch-id", str(chosen.branch), "--cache-steps", steps]
        cache += ["--forecast", str(chosen.forecast)] if chosen.forecast else []
    command = shlex.join(["python", "-m", args.script, *passed, *cache])
    print(report(tried, len(calibration.calls)))
    g = "fitted" if isinstance(chosen.forecast, list) else f"{chosen.forecast:g}"
    what = f"{chosen.kind}, m = {chosen.branch}" + (f", forecast {g}" if chosen.forecast else "")
    print(f"{what}: {chosen.speed_up:.2f} × fewer operations, {chosen.psnr:.2f} dB\n{command}")
    if args.out:
        ignored = {"cache_interval", "cache_branch_id", "uniform", "pow", "center", "cache_steps"}
        found = {
            "script": args.script,
            "model": str(getattr(options, "model", None) or getattr(options, "checkpoint", None) or "shipped"),
            "steps": options.steps,
            "settings": {k: v for k, v in run.image_set.settings.items() if k not in ignored},
            "num_images": {"calibrated_on": args.num_images, "tried_on": args.num_images},
            "cache_branch_id": chosen.branch,
            "cache_steps": chosen.cache_steps,
            "forecast": chosen.forecast,
            "chosen": asdict(chosen),
            "tried": [asdict(one) for one in tried],
            "command": command,
        }
        write_json(args.out, found)
        print(f"Written {args.out}")


def main(argv: list[str] | None = None) -> int:
    args, passed = parser().parse_known_args(argv)
    return run_cli(lambda: run(args, passed))


if __name__ == "__main__":
    sys.exit(main())
