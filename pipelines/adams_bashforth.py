"""Second- and third-order sampling: exponential Adams–Bashforth on a model's own timesteps (Zhang & Chen 2023, DEIS).

With y = x / √ᾱ and σ = √(1/ᾱ − 1), every deterministic sampler integrates dy/dσ = ε. DDIM uses the last predicted noise
for the whole step. This sampler uses the polynomial through the last two or three, which reduces to a weighted sum:

    y_next = y + Σ_j w_j ε_j,    w_j = ∫ L_j dσ over the step, L_j Lagrange's polynomials.

They are polynomials in the position in the run, which is linear in t within a step. On evenly spaced timesteps this is
the paper's tAB-DEIS; on DDPM's quadratic ones it was measured to be more accurate than polynomials in t, σ or log σ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from diffusers import DDIMScheduler
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from torch import Tensor

ORDERS = {"ab2": 2, "ab3": 3}  # by their names on a command line


def adams_bashforth_weights(timesteps: Sequence[int], sigmas: np.ndarray, order: int) -> list[list[float]]:
    """The weights of the last noises at each step, newest first.

    Args:
        timesteps: of the run, descending integers. A repeated timestep is a step of length 0, after which its newer
            noise replaces the older one.
        sigmas: σ at −1, where a run ends, and at the T timesteps that the model was trained on, (T + 1,). The integral
            is the trapezoidal sum over all of those within a step.
        order: the number of noises used, once there are that many.
    """
    weights: list[list[float]] = []
    known: list[int] = []  # positions of noises, the newest first
    position, before = -1, None
    for t, target in zip(timesteps, [*timesteps[1:], -1], strict=True):
        if t != before:
            position, before = position + 1, t
            known = [position, *known][:order]
        grid = np.arange(t, target - 1, -1)  # from the start of the step to its end
        at = position + (t - grid) / max(t - target, 1)
        steps = np.diff(sigmas[grid + 1])
        row = []
        for k in known:
            others = [(at - o) / (k - o) for o in known if o != k]
            polynomial = np.prod(others, axis=0) if others else np.ones(len(grid))
            row.append(float((steps * (polynomial[1:] + polynomial[:-1]) / 2).sum()))
        weights.append(row)
    return weights


class NoiseHistory:
    """The last noises of a run, and their weighted sum at each of its steps."""

    def __init__(self, timesteps: Sequence[int], sigmas: np.ndarray, order: int) -> None:
        self._timesteps = list(timesteps)
        self._weights = adams_bashforth_weights(timesteps, sigmas, order)
        self._order = order
        self._noises: list[Tensor] = []
        self._position = 0

    def add(self, noise: Tensor) -> Tensor:
        """Σ_j w_j ε_j of the next step (B, …), given its predicted noise."""
        i = self._position
        repeated = i > 0 and self._timesteps[i] == self._timesteps[i - 1]
        self._noises = [noise, *self._noises[repeated:]][: self._order]
        self._position += 1
        first, *others = self._weights[i]
        total = first * noise
        for weight, earlier in zip(others, self._noises[1:], strict=True):
            total = total + weight * earlier
        return total


class AdamsBashforthScheduler(DDIMScheduler):
    """diffusers' `DDIMScheduler` with steps of a higher order, for models that predict the noise.

    Attributes:
        solver_order: 2 or 3; 1 is DDIM.
    """

    solver_order = 2

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        """As the parent's; starts a new run."""
        super().set_timesteps(*args, **kwargs)
        self._history: NoiseHistory | None = None

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, eta: float = 0.0, *, return_dict: bool = True,
        **_: Any,
    ) -> Any:  # fmt: skip
        """x at the next timestep (B, …), from x and the predicted noise. Call it in the order of `timesteps`.

        Raises:
            ValueError: η above 0, or a model that does not predict the noise.
        """
        if eta > 0:
            raise ValueError(f"eta is {eta}; it must be 0 with Adams–Bashforth sampling")
        if self.config.prediction_type != "epsilon":
            raise ValueError(
                f"prediction_type is {self.config.prediction_type}; Adams–Bashforth sampling needs epsilon"
            )
        if self._history is None:
            alphas = np.concatenate([[float(self.final_alpha_cumprod)], self.alphas_cumprod.double().numpy()])
            self._sigmas = np.sqrt(1 / alphas - 1)
            self._left = [*map(int, self.timesteps), -1]
            self._history = NoiseHistory(self._left[:-1], self._sigmas, self.solver_order)
        t, target = self._left[0], self._left[1]
        del self._left[0]
        scale, next_scale = (math.sqrt(1 + self._sigmas[k + 1] ** 2) for k in (t, target))  # 1 / √ᾱ
        sample = (sample * scale + self._history.add(model_output)) / next_scale
        return DDIMSchedulerOutput(prev_sample=sample) if return_dict else (sample,)
