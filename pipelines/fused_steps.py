"""Sampler steps as one compiled weighted sum.

A step of a deterministic diffusers sampler is a weighted sum of latents and predicted noises, current and past, with
weights that depend only on the timesteps:

    x_{i+1} = Σ_j a_ij x_{i−j} + Σ_j b_ij ε_{i−j}

The sampler computes the weights again at every step, in 6 (DDIM) to 32 (UniPC) small operations on the device and more
on the host. Here they are obtained from the sampler itself, before the first step: a copy of it runs on one unit vector
for every latent and noise, and its outputs are the weights.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from unets.cache.samplers import DETERMINISTIC, is_sde


def step_weights(scheduler: Any, timesteps: Tensor) -> tuple[Tensor, list[int], list[int]]:
    """The weights of every step of a run that starts now, and the latents and noises that they apply to.

    Args:
        scheduler: set for the run, before its first step; it is not changed.
        timesteps: of the run, (T,).

    Returns:
        (T, K) float32, and the ages in steps of the latents and of the noises, K in total.
    """
    scheduler, size = copy.deepcopy(scheduler), 2 * len(timesteps)
    basis = torch.eye(size, dtype=torch.float64)
    rows = []
    for i, t in enumerate(timesteps):
        x, noise = basis[2 * i, None], basis[2 * i + 1, None]  # (1, 2T) each
        rows.append(scheduler.step(noise, t, x, return_dict=False)[0][0].double())
    table = torch.stack(rows)
    ago = [
        [j for j in range(len(rows)) if any(table[i, 2 * (i - j) + part] != 0 for i in range(j, len(rows)))]
        for part in (0, 1)
    ]
    weights = torch.zeros(len(rows), len(ago[0]) + len(ago[1]))
    for i in range(len(rows)):
        columns = [2 * (i - j) + part for part in (0, 1) for j in ago[part]]
        for k, column in enumerate(columns):
            weights[i, k] = table[i, column] if column >= 0 else 0.0
    return weights, ago[0], ago[1]


def weighted_sum(weights: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """Σ_k w_k x_k in float32, in the parts' own dtype (B, …); weights are (K,)."""
    total = weights[0] * parts[0].float()
    for k in range(1, len(parts)):
        total = total + weights[k] * parts[k].float()
    return total.to(parts[0].dtype)


def can_be_fused(scheduler: Any) -> bool:
    """Whether its steps are weighted sums: not if it clips or adds noise."""
    config = scheduler.config
    nonlinear = config.get("thresholding") or config.get("clip_sample")
    return type(scheduler).__name__ in DETERMINISTIC and not nonlinear and not is_sde(scheduler)


def fuse_steps(scheduler: Any, add: Callable[[Tensor, Sequence[Tensor]], Tensor]) -> None:
    """Replaces the scheduler's step with `add(weights, parts)`: `weighted_sum`, possibly compiled.

    Images equal those of the scheduler's own steps up to rounding. Steps with η above 0 use the scheduler's own.
    """
    scheduler.__class__ = _with_fused_steps(type(scheduler), add)  # an attribute would be lost in copies


def _with_fused_steps(cls: Any, add: Callable[[Tensor, Sequence[Tensor]], Tensor]) -> Any:
    """A subclass of the scheduler's class, under the same name, since it is saved with that."""

    @functools.wraps(cls.set_timesteps)
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> None:
        cls.set_timesteps(self, *args, **kwargs)
        self._run = None

    @functools.wraps(cls.step)
    def step(self: Any, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs.get("eta"):
            return cls.step(self, model_output, timestep, sample, *args, **kwargs)
        if self._run is None:
            self._run = FusedRun(self, float(timestep), sample.device)
        sample = add(*self._run.next(model_output, float(timestep) if self._run.position == 1 else None, sample))
        if getattr(self, "_step_index", None) is not None:
            self._step_index += 1  # Euler scales the latents by it
        return Stepped(sample) if kwargs.get("return_dict", True) else (sample,)

    names = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    own = {"set_timesteps": set_timesteps, "step": step, "_own_class": cls, "_run": None, "_weights": {}}
    return type(cls.__name__, (cls,), {**names, **own})


class FusedRun:
    """The weights of one run, and the latents and noises that they apply to."""

    _ago: list[list[int]]

    def __init__(self, scheduler: Any, timestep: float, device: torch.device) -> None:
        self._stock = copy.copy(scheduler)
        self._stock.__class__ = scheduler._own_class
        self._stock._weights = None
        self._stock = copy.deepcopy(self._stock)  # its state before the first step
        self._known = scheduler._weights
        self._times = scheduler.timesteps.cpu()
        self._device = device
        self.position = 0
        self._past: tuple[list[Tensor], list[Tensor]] = ([], [])
        self._begin(int((self._times == timestep).nonzero()[0]))  # not 0 for image to image

    def _begin(self, first: int) -> None:
        run = (repr(self._stock.config), str(self._device), *self._times[first:].tolist())
        if run not in self._known:
            weights, *ago = step_weights(self._stock, self._times[first:])
            self._known[run] = weights.to(self._device), ago
        self._first, (self._weights, self._ago) = first, self._known[run]

    def next(self, noise: Tensor, timestep: float | None, sample: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The next step's weights (K,), and what they apply to. Only the second step looks at the timestep."""
        if timestep is not None and float(self._times[self._first + 1]) != timestep:
            self._begin(self._first + 1)  # the first step was the second of a repeated timestep
        parts = []
        for past, ago, value in zip(self._past, self._ago, (sample, noise), strict=True):
            past.insert(0, value)
            del past[1 + max(ago) :]
            # Missing parts have weight 0. Each gets its own zeros: a graph specialises on inputs that are identical.
            parts += [past[j] if j < len(past) else torch.zeros_like(value) for j in ago]
        self.position += 1
        return self._weights[self.position - 1], parts


class Stepped:
    """The output of a step with `return_dict`."""

    def __init__(self, prev_sample: Tensor) -> None:
        self.prev_sample = prev_sample
