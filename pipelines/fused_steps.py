"""A sampler's step as one sum, compiled: what it does to latents and noises, without how it finds that out.

A deterministic sampler of diffusers takes latents and predicted noises, its own past ones among them, to a sum of them
with weights that depend on the timesteps alone:

    x_{i+1} = Σ_j a_ij x_{i−j} + Σ_j b_ij ε_{i−j}

It finds the weights anew at every step, in 6 (DDIM) to 32 (UniPC) small operations on the device and more on the host.
Here they are asked of the sampler itself, before the first step: a copy of it is run on vectors that are 1 in one place
each, one for every latent and noise, and what it returns are the weights.
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
    """The weights of every step of a run that begins now, and what they are of.

    Args:
        scheduler: set for the run, no step taken; it is left as it is.
        timesteps: of the run, (T,).

    Returns:
        (T, K) float32, and for latents and for noises how many steps ago each is of: together they are K.
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
    """Whether its steps are sums: not if it clips, or adds noise of its own."""
    config = scheduler.config
    nonlinear = config.get("thresholding") or config.get("clip_sample")
    return type(scheduler).__name__ in DETERMINISTIC and not nonlinear and not is_sde(scheduler)


def fuse_steps(scheduler: Any, add: Callable[[Tensor, Sequence[Tensor]], Tensor]) -> None:
    """Has every later step of the scheduler be `add(weights, parts)`, which is `weighted_sum` or that compiled.

    Pictures are those of the scheduler's own steps but for rounding. A step with η above 0 is the scheduler's own.
    """
    scheduler.__class__ = _with_fused_steps(type(scheduler), add)  # an attribute would not go with a copy


def _with_fused_steps(cls: Any, add: Callable[[Tensor, Sequence[Tensor]], Tensor]) -> Any:
    """The scheduler's class, under the same name, with which it is saved."""

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
            self._step_index += 1  # which Euler scales the latents by
        return Stepped(sample) if kwargs.get("return_dict", True) else (sample,)

    names = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    own = {"set_timesteps": set_timesteps, "step": step, "_own_class": cls, "_run": None, "_weights": {}}
    return type(cls.__name__, (cls,), {**names, **own})


class FusedRun:
    """The weights of one run, and the latents and noises that they are of."""

    _ago: list[list[int]]

    def __init__(self, scheduler: Any, timestep: float, device: torch.device) -> None:
        self._stock = copy.copy(scheduler)
        self._stock.__class__ = scheduler._own_class
        self._stock._weights = None
        self._stock = copy.deepcopy(self._stock)  # as it is before the first step
        self._known = scheduler._weights
        self._times = scheduler.timesteps.cpu()
        self._device = device
        self.position = 0
        self._past: tuple[list[Tensor], list[Tensor]] = ([], [])
        self._begin(int((self._times == timestep).nonzero()[0]))  # of an image, in the middle

    def _begin(self, first: int) -> None:
        run = (repr(self._stock.config), str(self._device), *self._times[first:].tolist())
        if run not in self._known:
            weights, *ago = step_weights(self._stock, self._times[first:])
            self._known[run] = weights.to(self._device), ago
        self._first, (self._weights, self._ago) = first, self._known[run]

    def next(self, noise: Tensor, timestep: float | None, sample: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The next step's weights (K,), and what they are of. The timestep is looked at in the second step alone."""
        if timestep is not None and float(self._times[self._first + 1]) != timestep:
            self._begin(self._first + 1)  # the first was one that repeats, for the second time
        parts = []
        for past, ago, value in zip(self._past, self._ago, (sample, noise), strict=True):
            past.insert(0, value)
            del past[1 + max(ago) :]
            # What isn't there weighs nothing. It is another tensor: a graph knows which of its inputs are the same.
            parts += [past[j] if j < len(past) else torch.zeros_like(value) for j in ago]
        self.position += 1
        return self._weights[self.position - 1], parts


class Stepped:
    """What a step returns if it isn't asked for a tuple."""

    def __init__(self, prev_sample: Tensor) -> None:
        self.prev_sample = prev_sample
