"""The ways to make the shipped models' pictures that `benchmarks.pareto` compares."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from common.shipped import GUIDANCE, RECOMMENDED, SHAPES_DDPM, SHAPES_LDM, SHAPES_SD
from ddpm.checkpoint import load_unet
from ddpm.sample import sample
from ddpm.sampler import timesteps_of
from eval.generation.prompts import shapes_caption
from eval.generation.text import make_images
from image_sets.batches import Batch
from ldm.checkpoint import load_pipeline as load_ldm
from pipelines import StableDiffusionPipeline
from pipelines.adams_bashforth import ORDERS, AdamsBashforthScheduler
from pipelines.cache_options import read_calibration
from pipelines.competitors import package_enabled, stock_pipeline, tokens_merged
from pipelines.loading import load_pipeline, new_scheduler
from unets.cache.config import CacheConfig

from .macs import Layout
from .published import AlignYourStepsScheduler, PFDiffScheduler, easycache, pfdiff_sample, tgate

CHEAP: dict[str, Any] = {"reuse_attention": True, "reuse_guidance": True}
LISTED: dict[str, dict[str, Any]] = {  # for runs of 50 steps, found by trial and error
    f"{name}, branch {branch}": {
        "cache_steps": full, "refresh_steps": refresh, "cache_branch_id": 0, "refresh_branch_id": branch,
        "forecast": 1.0, "forecast_order": order, **CHEAP,
    }
    for name, branch, order, full, refresh in (
        ("dense at the beginning", 5, 2.0, [0, 2, 7, 18, 32], [4, 10, 14, 22, 27, 37, 42, 47]),
        ("dense at the beginning", 3, 1.7, [0, 3, 9, 19, 33], [6, 12, 15, 23, 27, 38, 43, 48]),
        ("three full steps", 4, 1.7, [0, 16, 33], [3, 6, 11, 21, 27, 39, 46, 49]),
        ("three full and seven refresh steps", 4, 1.7, [0, 16, 33], [4, 10, 22, 27, 40, 45, 49]),
    )
}  # fmt: skip


class Run(NamedTuple):
    """The U-Net calls of one run of our own loops."""

    cache: CacheConfig
    num_calls: int
    num_steps: int


class Point(NamedTuple):
    """One way to make the pictures."""

    name: str
    kind: str
    unet: Any
    make: Callable[[Batch], Tensor]  # (B, 3, H, W) in [−1, 1]
    run: Run | None = None  # for our own loops only; None for other methods


class Model(NamedTuple):
    """A shipped model's points: the first is the baseline, the last, of the kind "fine", solves the ODE finely.

    With twice the steps, the fine solutions change by this much (median PSNR of 8 pictures, LDM 2 with half the steps):
    text (200 steps) 61.1 dB, DDPM (250) 65.6 dB, LDM (500) 59.7 dB, if it begins at the same timestep. Runs of LDM with
    fewer steps begin at a lower one, which their distances include: 997 for 999 makes 49.7 dB of that.
    """

    stands_for: str  # FID's reference is newly drawn like its training pictures
    points: Callable[[], list[Point]]
    layouts: Mapping[str, Layout]  # by the column that shows their MACs


class TextRun(NamedTuple):
    """A way to make the text-to-image pictures that needs only a sampler and a cache."""

    name: str
    kind: str
    cache: CacheConfig
    scheduler: str = "plms"  # a name of `pipelines.loading.SCHEDULERS`
    steps: int = 50


def text_runs() -> list[TextRun]:
    """The points of text to image that `stable_diffusion.py` can make too, the baseline first."""
    runs: list[TextRun] = []

    def add(name: str, kind: str, scheduler: str = "plms", steps: int = 50, **cache: Any) -> None:
        runs.append(TextRun(name, kind, CacheConfig(**cache), scheduler, steps))

    add("PLMS, 50 steps", "baseline")
    for n, m in ((2, 1), (5, 1), (5, 0)):
        add(f"plain N={n}, m={m}", "plain", cache_interval=n, cache_branch_id=m)
    add("skip N=3, order 1", "skipped", **skip(3, 0, 1))
    for m in (1, 0):
        add(f"forecast N=5, m={m}", "forecast", cache_interval=5, cache_branch_id=m, forecast=1.0)
    for name, settings in RECOMMENDED.items():
        add(name, "recommended", **settings)
        add(f"{name}, with the line", "two depths", **{**settings, "forecast_order": 1.0})
    for name, settings in LISTED.items():
        add(name, "recommended", **settings)
    for name, cache in calibrations(SHAPES_SD):
        add(name, "calibrated", **cache)
        add(f"{name}, attention and guidance reused", "calibrated", **{**cache, **CHEAP})
    for scheduler, numbers in (("ddim", (20,)), ("dpm++", (30, 20, 15, 10)), ("unipc", (20, 10))):
        for steps in numbers:
            add(f"{scheduler}, {steps} steps", "fewer steps", scheduler, steps)
    name, cache = two_depths(4, 0, 2, 3)
    name = f"dpm++, 20 steps, {name}, attention and guidance reused"
    add(name, "fewer steps, cached", "dpm++", 20, **cache, **CHEAP)
    return runs


def text_points() -> list[Point]:
    """Text to image, 50 steps of PLMS, guidance scale 2.5."""
    pipe = load_pipeline(StableDiffusionPipeline, SHAPES_SD, dtype=torch.float32, scheduler="plms", quiet=True)
    stock = stock_pipeline(pipe)
    config = pipe.scheduler.config
    dpm = new_scheduler("dpm++", config).config
    pipes: dict[str, Any] = {"plms": pipe}
    for name, scheduler in {
        **{name: new_scheduler(name, config) for name in ("ddim", "dpm++", "unipc")},
        "fine": DPMSolverMultistepScheduler.from_config(dpm, solver_order=3),
        "ays": AlignYourStepsScheduler.from_config(dpm),
        "pfdiff": PFDiffScheduler.from_config(config),
    }.items():
        pipes[name] = StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
        pipes[name].scheduler = scheduler
    for one in (*pipes.values(), stock):
        one.set_progress_bar_config(disable=True)

    def make(batch: Batch, on: Any, steps: int, around: Any = nullcontext, **cache: Any) -> Tensor:
        with around():
            return make_images(
                on, [shapes_caption(k) for k in batch.indices], batch.generators, num_inference_steps=steps,
                guidance_scale=GUIDANCE[True], **cache,
            )  # fmt: skip

    def point(name: str, kind: str, scheduler: str = "plms", steps: int = 50, **cache: Any) -> Point:
        calls = steps + (scheduler == "plms")  # which calls the U-Net once more
        on = pipes[scheduler]
        run = Run(CacheConfig(**cache), calls, steps) if scheduler not in ("ays", "pfdiff") else None
        return Point(name, kind, on.unet, partial(make, on=on, steps=steps, **cache), run)

    def other(name: str, kind: str, around: Any, on: Any = pipe) -> Point:
        return Point(name, kind, on.unet, partial(make, on=on, steps=50, around=around))

    points = [point(r.name, r.kind, r.scheduler, r.steps, **r.cache.arguments) for r in text_runs()]
    points.append(other("package N=5, m=1", "other packages", partial(package_enabled, stock, 5, 1), stock))
    if importlib.util.find_spec("tomesd"):
        merged = partial(tokens_merged, stock, 0.5)
        points.append(other("tomesd, half of the tokens", "other packages", merged, stock))
    for gate in (20, 10):
        points.append(other(f"T-GATE, gate {gate} of 50", "published", partial(tgate, pipe.unet, gate)))
    for threshold in (0.05, 0.1):  # the first is the authors'
        around = partial(easycache, pipe.unet, 51, threshold, guided=True)
        points.append(other(f"EasyCache, {100 * threshold:g} %", "published", around))
    for name, scheduler in (("Align Your Steps", "ays"), ("PFDiff-1", "pfdiff")):
        points += [point(f"{name}, {steps} steps", "published", scheduler, steps) for steps in (20, 10)]
    return [*points, point("dpm++ of order 3, 200 steps", "fine", "fine", 200)]


def calibrations(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """The schedules that eval.calibrate found for a shipped model, by name."""
    settings = []
    for file in sorted(folder.glob("calibrated-*.json")):
        cache = read_calibration(file).cache
        name = f"{file.stem}, {len(cache.cache_steps or ())} full, m={cache.cache_branch_id}"
        settings.append((name, cache.arguments))
    return settings


def two_depths(n: int, m: int, refresh: int, deeper: int) -> tuple[str, dict[str, Any]]:
    """Name and settings of a cache with two depths and the forecast."""
    cache = {"cache_interval": n, "cache_branch_id": m, "refresh_interval": refresh, "refresh_branch_id": deeper}
    return f"two depths N={n}, m={m}, every {refresh} m={deeper}", {**cache, "forecast": 1.0}


def skip(n: int, m: int, order: float) -> dict[str, Any]:
    """Settings for a run in which every n-th call is full and all others are skipped."""
    return {"cache_interval": n, "cache_branch_id": m, "skip_interval": n, "skip_order": order}


def ddpm_points() -> list[Point]:
    """Pixels without condition, 50 steps of DDIM."""
    unet = load_unet(SHAPES_DDPM).eval()

    def point(name: str, kind: str, steps: int = 50, sampler: str = "ddim", **cache: Any) -> Point:
        def make(batch: Batch) -> Tensor:
            return sample(unet, batch, timesteps_of(steps, "quad"), sampler=sampler, **cache)

        return Point(name, kind, unet, make, Run(CacheConfig(**cache), steps, steps))

    def with_easycache(batch: Batch) -> Tensor:
        with easycache(unet, 50):
            return sample(unet, batch, timesteps_of(50, "quad"))

    points = [point("DDIM, 50 steps", "baseline")]
    for kind, forecast in (("plain", 0.0), ("forecast", 1.0)):
        for n in (2, 5):
            cache: Any = {"cache_interval": n, "cache_branch_id": 2, "forecast": forecast}
            points.append(point(f"{kind} N={n}, m=2", kind, **cache))
    points += [point(f"skip N={n}, order 2.5", "skipped", **skip(n, 2, 2.5)) for n in (2, 3, 4, 5, 6)]
    name, cache = two_depths(6, 2, 3, 7)
    points.append(point(name, "two depths", **cache))
    points += [point(name, "calibrated", **cache) for name, cache in calibrations(SHAPES_DDPM)]
    points += [point(f"DDIM, {steps} steps", "fewer steps", steps) for steps in (35, 25, 15, 10)]
    points += [point(f"ab3, {steps} steps", "fewer steps", steps, "ab3") for steps in (20, 15, 10)]
    points.append(Point("EasyCache, 5 %", "published", unet, with_easycache))
    for calls in (20, 10):
        points.append(Point(f"PFDiff-1, {calls} steps", "published", unet, partial(pfdiff_sample, unet, calls=calls)))
    return [*points, point("ab3, 250 steps", "fine", 250, "ab3")]


def ldm_points() -> list[Point]:
    """Latents of a class, 100 steps of DDIM, guidance scale 1.5."""
    pipe = load_ldm(SHAPES_LDM)
    pipes = {"ddim": pipe}
    for sampler, order in ORDERS.items():
        scheduler = AdamsBashforthScheduler.from_config(pipe.scheduler.config)
        scheduler.solver_order = order
        pipes[sampler] = type(pipe)(**{**pipe.components, "scheduler": scheduler})
    for one in pipes.values():
        one.set_progress_bar_config(disable=True)

    def make(batch: Batch, on: Any, steps: int, **cache: Any) -> Tensor:
        labels = [k % on.num_classes for k in batch.indices]
        (images,) = on(labels, steps, generator=batch.generators, output_type="pt", return_dict=False, **cache)
        return images * 2 - 1

    def point(name: str, kind: str, steps: int = 100, sampler: str = "ddim", **cache: Any) -> Point:
        on = pipes[sampler]
        calls = len(on.set_timesteps(steps, "cpu"))
        run = Run(CacheConfig(**cache), calls, calls)
        return Point(name, kind, on.unet, partial(make, on=on, steps=steps, **cache), run)

    points = [point("DDIM, 100 steps", "baseline")]
    for kind, forecast, numbers in (("plain", 0.0, (2, 5, 10)), ("forecast", 1.0, (5, 10, 20))):
        for n in numbers:
            cache: Any = {"cache_interval": n, "cache_branch_id": 0, "forecast": forecast}
            points.append(point(f"{kind} N={n}, m=0", kind, **cache))
    points.append(point("skip N=5, order 1", "skipped", **skip(5, 0, 1)))
    name, cache = two_depths(10, 0, 5, 5)
    points.append(point(f"{name}, guidance reused", "two depths", reuse_guidance=True, **cache))
    for name, cache in calibrations(SHAPES_LDM):
        points.append(point(f"{name}, guidance reused", "calibrated", reuse_guidance=True, **cache))
    points += [point(f"DDIM, {steps} steps", "fewer steps", steps) for steps in (50, 25, 20, 10)]
    for sampler in ORDERS:
        points += [point(f"{sampler}, {steps} steps", "fewer steps", steps, sampler) for steps in (25, 20, 10)]
    for sampler, label, steps, n in (("ab2", "ab2", 50, 6), ("ddim", "DDIM", 40, 5)):
        cache = {"cache_interval": n, "cache_branch_id": 0, "forecast": 1.0}
        name = f"{label}, {steps} steps, forecast N={n}, m=0"
        points.append(point(name, "fewer steps, cached", steps, sampler, **cache))
    return [*points, point("ab3, 500 steps", "fine", 500, "ab3")]


MODELS: dict[str, Model] = {
    "text": Model(
        "sd15",
        text_points,
        {"operations": Layout(SHAPES_SD, guided=True, tokens=24), "sd15_operations": Layout("sd15", guided=True)},
    ),
    "ddpm": Model("ddpm-cifar10", ddpm_points, {"operations": Layout(SHAPES_DDPM, guided=False)}),
    "ldm": Model("ldm4", ldm_points, {"operations": Layout(SHAPES_LDM, guided=True, tokens=1)}),
}
