"""The ways to make the shipped models' pictures that `benchmarks.pareto` compares."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from common.shipped import GUIDANCE, SHAPES_DDPM, SHAPES_LDM, SHAPES_SD
from ddpm.checkpoint import load_unet
from ddpm.sample import sample
from ddpm.sampler import timesteps_of
from eval.generation.prompts import shapes_caption
from eval.generation.text import make_images
from image_sets.batches import Batch
from ldm.checkpoint import load_pipeline as load_ldm
from pipelines import StableDiffusionPipeline
from pipelines.cache_options import read_calibration
from pipelines.competitors import package_enabled, stock_pipeline, tokens_merged
from pipelines.loading import load_pipeline, new_scheduler

DEPTHS = (
    (4, 2, 3),
    (6, 3, 3),
    (8, 4, 3),
    (8, 4, 5),
    (9, 3, 5),
    (10, 5, 3),
    (12, 4, 3),
    (12, 4, 5),
    (15, 5, 3),
    (15, 5, 5),
)  # N, refresh_interval, branch


class Point(NamedTuple):
    """One way to make the pictures."""

    name: str
    kind: str
    unet: Any
    make: Callable[[Batch], Tensor]  # (B, 3, H, W) in [−1, 1]


def text_points() -> list[Point]:
    """Text to image, 50 steps of PLMS, guidance scale 2.5."""
    pipe = load_pipeline(StableDiffusionPipeline, SHAPES_SD, dtype=torch.float32, scheduler="plms", quiet=True)
    stock = stock_pipeline(pipe)
    pipes: dict[str, Any] = {"plms": pipe}
    for name in ("ddim", "dpm++", "unipc"):
        pipes[name] = StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
        pipes[name].scheduler = new_scheduler(name, pipe.scheduler.config)
    for one in (*pipes.values(), stock):
        one.set_progress_bar_config(disable=True)

    def make(batch: Batch, on: Any = pipe, steps: int = 50, around: Any = nullcontext, **cache: Any) -> Tensor:
        with around():
            return make_images(
                on, [shapes_caption(k) for k in batch.indices], batch.generators, num_inference_steps=steps,
                guidance_scale=GUIDANCE[True], **cache,
            )  # fmt: skip

    def point(name: str, kind: str, **settings: Any) -> Point:
        on = settings.get("on", pipe)
        return Point(name, kind, on.unet, partial(make, **settings))

    points = [point("PLMS, 50 steps", "baseline")]
    for n in (2, 3, 5, 10, 15, 20):
        points.append(point(f"plain N={n}, m=1", "plain", cache_interval=n, cache_branch_id=1))
    points += [point(f"plain N={n}, m=0", "plain", cache_interval=n, cache_branch_id=0) for n in (5, 10)]
    for m, intervals in ((1, (2, 3, 5, 10, 15, 20)), (0, (2, 3, 5, 10)), (2, (5, 10))):
        for n in intervals:
            cache = {"cache_interval": n, "cache_branch_id": m, "forecast": 1.0}
            points.append(point(f"forecast N={n}, m={m}", "forecast", **cache))
    for m, n, stop in ((1, 3, 1.0), (1, 5, 1.0), (1, 10, 1.0), (0, 3, 1.0), (0, 5, 1.0), (0, 10, 1.0), (0, 5, 0.9)):
        cache = {"cache_interval": n, "cache_branch_id": m, "forecast": 1.0, "reuse_guidance": True}
        name = f"forecast N={n}, m={m}, guidance reused" + ("" if stop == 1 else f", stopped at {stop}")
        points.append(point(name, "forecast, guidance reused", guidance_stop=stop, **cache))
    for n in (3, 5, 8):
        cache = {"cache_interval": n, "cache_branch_id": 0, "forecast": 1.0, "reuse_attention": True}
        points.append(point(f"forecast N={n}, m=0, attention reused", "forecast", **cache))
    for n, refresh, deeper in DEPTHS:
        name, cache = two_depths(n, 0, refresh, deeper)
        if (n, deeper) in ((8, 5), (12, 5)):
            points.append(point(name, "two depths", **cache))
        cache["reuse_attention"], name = True, f"{name}, attention reused"
        points.append(point(name, "two depths", **cache))
        cache["reuse_guidance"] = True
        points.append(point(f"{name}, guidance reused", "two depths, guidance reused", **cache))
    for name, cache in calibrations(SHAPES_SD):
        points.append(point(name, "calibrated", **cache))
        cache |= {"reuse_attention": True, "reuse_guidance": True}
        points.append(point(f"{name}, attention and guidance reused", "calibrated", **cache))
    for scheduler, on in pipes.items():
        for steps in (30, 20, 15, 10):
            points.append(point(f"{scheduler}, {steps} steps", "fewer steps", on=on, steps=steps))
    for steps, n in ((50, 5), (30, 3), (25, 3), (20, 2), (15, 2)):
        cache = {"cache_interval": n, "cache_branch_id": 1, "forecast": 1.0, "reuse_guidance": True}
        name = f"dpm++, {steps} steps, forecast N={n}, m=1, guidance reused"
        points.append(point(name, "fewer steps, cached", on=pipes["dpm++"], steps=steps, **cache))
    for steps, n, refresh, deeper in ((50, 8, 4, 5), (30, 4, 2, 3), (20, 4, 2, 3)):
        name, cache = two_depths(n, 0, refresh, deeper)
        name = f"dpm++, {steps} steps, {name}, attention and guidance reused"
        cache |= {"reuse_attention": True, "reuse_guidance": True}
        points.append(point(name, "fewer steps, cached", on=pipes["dpm++"], steps=steps, **cache))
    for n in (5, 10):
        package = partial(package_enabled, stock, n, 1)
        points.append(point(f"package N={n}, m=1", "other packages", on=stock, around=package))
    if importlib.util.find_spec("tomesd"):
        points.append(
            point("tomesd, half of the tokens", "other packages", on=stock, around=partial(tokens_merged, stock, 0.5))
        )
    return points


def calibrations(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """What eval.calibrate found for a shipped model, by name."""
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


def ddpm_points() -> list[Point]:
    """Pixels without condition, 50 steps of DDIM."""
    unet = load_unet(SHAPES_DDPM).eval()

    def point(name: str, kind: str, steps: int = 50, **cache: Any) -> Point:
        return Point(name, kind, unet, lambda batch: sample(unet, batch, timesteps_of(steps, "quad"), **cache))

    points = [point("DDIM, 50 steps", "baseline")]
    for kind, forecast in (("plain", 0.0), ("forecast", 1.0)):
        for n in (2, 3, 5, 10):
            cache: Any = {"cache_interval": n, "cache_branch_id": 2, "forecast": forecast}
            points.append(point(f"{kind} N={n}, m=2", kind, **cache))
    for n, refresh, deeper in ((4, 2, 5), (6, 3, 5), (6, 3, 7), (10, 5, 5), (10, 2, 5)):
        name, cache = two_depths(n, 2, refresh, deeper)
        points.append(point(name, "two depths", **cache))
    points += [point(name, "calibrated", **cache) for name, cache in calibrations(SHAPES_DDPM)]
    return points + [point(f"DDIM, {steps} steps", "fewer steps", steps) for steps in (35, 25, 15, 10)]


def ldm_points() -> list[Point]:
    """Latents of a class, 100 steps of DDIM, guidance scale 1.5."""
    pipe = load_ldm(SHAPES_LDM)
    pipe.set_progress_bar_config(disable=True)

    def make(batch: Batch, steps: int, **cache: Any) -> Tensor:
        labels = [k % pipe.num_classes for k in batch.indices]
        (images,) = pipe(labels, steps, generator=batch.generators, output_type="pt", return_dict=False, **cache)
        return images * 2 - 1

    def point(name: str, kind: str, steps: int = 100, **cache: Any) -> Point:
        return Point(name, kind, pipe.unet, partial(make, steps=steps, **cache))

    points = [point("DDIM, 100 steps", "baseline")]
    for kind, more in (
        ("plain", {}),
        ("forecast", {"forecast": 1.0}),
        ("forecast, guidance reused", {"forecast": 1.0, "reuse_guidance": True}),
    ):
        for n in (2, 3, 5, 10, 20):
            cache: Any = {"cache_interval": n, "cache_branch_id": 0, **more}
            name = kind.replace(", ", f" N={n}, m=0, ") if more.get("reuse_guidance") else f"{kind} N={n}, m=0"
            points.append(point(name, kind, **cache))
    for n, refresh, deeper in ((6, 3, 3), (10, 5, 3), (10, 5, 5), (20, 5, 3), (20, 5, 5)):
        name, cache = two_depths(n, 0, refresh, deeper)
        points.append(point(name, "two depths", **cache))
        points.append(point(f"{name}, guidance reused", "two depths, guidance reused", reuse_guidance=True, **cache))
    for name, cache in calibrations(SHAPES_LDM):
        points.append(point(name, "calibrated", **cache))
        points.append(point(f"{name}, guidance reused", "calibrated", reuse_guidance=True, **cache))
    return points + [point(f"DDIM, {steps} steps", "fewer steps", steps) for steps in (50, 25, 20, 10)]


MODELS: dict[str, tuple[str, Callable[[], list[Point]]]] = {
    "text": ("sd15", text_points),
    "ddpm": ("ddpm-cifar10", ddpm_points),
    "ldm": ("ldm4", ldm_points),
}
