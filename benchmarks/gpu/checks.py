"""The list of checks, each with a name, a time limit and a function; the most informative ones come first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from .bench import Bench, Finding
from .correct import clock, decode, graphs, near_cpu, noise, offload, waits
from .settings import SETTINGS
from .speed import loops, steps

# Seconds of steps and of loops, batch 1 and 8, on an H100: guesses, until the first run. Video has no loops of 8: the
# latents and features of 8 × 25 frames are more than most GPUs hold, and its loop would take minutes.
STEPS: dict[str, tuple[float, float]] = {
    "sd15": (12, 15), "sd21": (15, 20), "sdxl": (20, 30), "svd-xt": (25, 40), "ldm4": (10, 12), "ddpm-cifar10": (8, 8),
}  # fmt: skip
LOOPS: dict[str, tuple[float, float | None]] = {
    "sd15": (25, 60), "sd21": (30, 75), "sdxl": (45, 120), "svd-xt": (80, None), "ldm4": (25, 45),
    "ddpm-cifar10": (15, 20),
}  # fmt: skip
COMPILED = {"sd15": (110, 30, 150), "sdxl": (180, 40, 240), "svd-xt": (150, 40, 200)}  # graphs, steps, loops
BATCHES = (1, 8)


@dataclass(frozen=True)
class Check:
    """One check."""

    name: str
    seconds: float  # time limit; timed rounds fill half of it
    find: Callable[[Bench, float], Finding]
    needs_cuda: bool = False


def all_checks(dtypes: list[str]) -> list[Check]:
    """All checks in order, for these dtypes."""
    first, other = dtypes[0], dtypes[-1]
    checks = [
        Check(f"noise, sd15, {first}", 15, partial(noise, name="sd15", dtype=first)),
        Check(f"no waiting, sd15, {first}", 20, partial(waits, name="sd15", dtype=first), needs_cuda=True),
        Check(f"clock, sd15, {first}", 10, partial(clock, name="sd15", dtype=first)),
        *_speed("sd15", first, 1),
        Check(f"decode, sd15, {first}", 10, partial(decode, name="sd15", dtype=first)),
        Check(f"offload, sd15, {first}", 30, partial(offload, name="sd15", dtype=first), needs_cuda=True),
        _near_cpu("sd15"),
        _graphs("sd15", first),
        _speed("sd15", first, 1, compiled=True)[0],
        *_speed("sd15", other, 1),
        _speed("sd15", other, 8)[0],
        *_speed("sd15", first, 8),
        *_speed("sdxl", first, 1),
        Check(f"decode, sdxl, {first}", 20, partial(decode, name="sdxl", dtype=first)),
        *_speed("svd-xt", first, 1),
        Check(f"decode, svd-xt, {first}", 30, partial(decode, name="svd-xt", dtype=first)),
        _near_cpu("ddpm-cifar10"),
        _near_cpu("ldm4"),
    ]
    for name in ("ldm4", "ddpm-cifar10", "sd21"):
        checks += _speed(name, first, 1)
    for dtype in dtypes:
        for batch in BATCHES:
            for name in SETTINGS:
                checks += _speed(name, dtype, batch)
    for dtype in dtypes:
        for name in COMPILED:
            checks += [_graphs(name, dtype), *_speed(name, dtype, 1, compiled=True)]
    checks += _speed("sd15", first, 8, compiled=True)
    return list({check.name: check for check in checks}.values())  # each once, at its first position


def _near_cpu(name: str) -> Check:
    return Check(f"near the CPU, {name}, float32", 30, partial(near_cpu, name=name))


def _graphs(name: str, dtype: str) -> Check:
    return Check(f"compiled graphs, {name}, {dtype}", COMPILED[name][0], partial(graphs, name=name, dtype=dtype))


def _speed(name: str, dtype: str, batch: int, compiled: bool = False) -> list[Check]:
    """Steps and loops of a model."""
    which = BATCHES.index(batch)
    seconds = COMPILED[name][1:] if compiled else (STEPS[name][which], LOOPS[name][which])
    title = f"{name}, {dtype}, batch {batch}"
    return [
        Check(
            f"{'compiled ' * compiled}{kind}, {title}", most,
            partial(find, name=name, dtype=dtype, batch=batch, compiled=compiled),
        )
        for kind, find, most in zip(("steps", "loops"), (steps, loops), seconds, strict=True)
        if most is not None
    ]  # fmt: skip
