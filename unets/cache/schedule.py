"""Which steps of a run compute the whole U-Net. All other steps retrieve the cached feature.

Steps are counted by their position in the denoising loop. The first is always full, so there is always a feature to
retrieve.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def full_steps(
    num_steps: int,
    cache_interval: int = 1,
    *,
    uniform: bool = True,
    pow: float | None = None,
    center: int | None = None,
    cache_steps: Sequence[int] | None = None,
) -> list[int]:
    """The full steps of a run of `num_steps` steps, sorted, without repeats, beginning with 0.

    Args:
        num_steps: positions of the denoising loop, at least 1.
        cache_interval: N; ceil(num_steps / N) steps are full. 1 means that all are.
        uniform: every N-th step (equation 6). Otherwise the non-uniform schedule of the released code.
        pow, center: of the non-uniform schedule: how strongly full steps concentrate, and around which step.
        cache_steps: explicit list of full steps, instead of all of the above.

    Raises:
        ValueError: naming the argument that is out of range.
    """
    check_schedule(cache_interval, uniform=uniform, pow=pow, center=center, cache_steps=cache_steps)
    if cache_steps is not None:
        steps = sorted(set(cache_steps))
        if steps[-1] >= num_steps:
            raise ValueError(
                f"cache_steps has {steps[-1]}, but the {num_steps} steps are numbered 0 to {num_steps - 1}"
            )
        return steps
    if pow is None or center is None:
        return list(range(0, num_steps, cache_interval))
    return non_uniform(num_steps, cache_interval, pow=pow, center=center)


def check_schedule(
    cache_interval: int = 1,
    *,
    uniform: bool = True,
    pow: float | None = None,
    center: int | None = None,
    cache_steps: Sequence[int] | None = None,
) -> None:
    """Raises ValueError, by name, for an argument of `full_steps` that is invalid for any length of run."""
    if cache_steps is not None:
        steps = sorted(set(cache_steps))
        if not steps or steps[0] != 0:
            raise ValueError(f"cache_steps {steps} must begin with 0: the first step has nothing to retrieve")
    elif cache_interval < 1:
        raise ValueError(f"cache_interval is {cache_interval}; it must be at least 1 (1 turns the cache off)")
    elif uniform:
        if pow is not None or center is not None:
            raise ValueError("pow and center belong to the non-uniform schedule; pass uniform=False with them")
    elif pow is None or center is None:
        raise ValueError("the non-uniform schedule needs both pow and center, for example pow=1.4, center=15")
    else:
        _check_shape(pow, center)


def non_uniform(num_steps: int, cache_interval: int, *, pow: float, center: int) -> list[int]:
    """The non-uniform schedule of the paper's released code, with which the published results were made.

    It differs from the printed `equation_7`: the root of the negative end is complex, and the real part of the power
    is truncated before the centre is added. The power decreases by 0.02 until ceil(T/N) steps are distinct. If it
    reaches 1, the released code gives up; here the result is the uniform schedule, which is equation 7 for power 1.
    """
    _check_shape(pow, center, num_steps)
    count = math.ceil(num_steps / cache_interval)
    while pow > 1:
        roots = np.linspace(complex(-center) ** (1 / pow), complex(num_steps - center) ** (1 / pow), count + 1)
        inner = np.unique((roots**pow).real.astype(np.int32))[1:-1] + center
        steps = [0, *(int(step) for step in inner if 0 < step < num_steps)]
        if len(steps) == count:
            return steps
        pow -= 0.02
    return list(range(0, num_steps, cache_interval))


def equation_7(num_steps: int, cache_interval: int, *, pow: float, center: int) -> list[int]:
    """The non-uniform schedule as printed in the paper (equation 7), with real roots that keep their sign.

    It may have fewer than ceil(T/N) steps, since several points can fall on one step.
    """
    _check_shape(pow, center, num_steps)
    count = math.ceil(num_steps / cache_interval)
    first, last = (math.copysign(abs(v) ** (1 / pow), v) for v in (-center, num_steps - center))
    points = np.linspace(first, last, count, endpoint=False)
    steps = np.trunc(np.sign(points) * np.abs(points) ** pow + center).astype(int)
    return sorted({0, *(int(step) for step in steps)})


def _check_shape(pow: float, center: int, num_steps: int | None = None) -> None:
    if not 1 < pow <= 10:
        raise ValueError(f"pow is {pow}; it must be above 1 (which is the uniform schedule) and at most 10")
    if center < 0:
        raise ValueError(f"center is {center}; steps are counted from 0")
    if num_steps is not None and center >= num_steps:
        raise ValueError(f"center is {center}; it must be one of the steps, 0 to {num_steps - 1}")
