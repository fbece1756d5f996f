"""The state of one run, and what happens at each of its steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from torch import Tensor

from .plan import Plan

Outputs = dict[int, Tensor]
"""Outputs of layers, by their number."""

RunPart = Callable[[range, Tensor, Outputs], Outputs]
"""Runs the layers of a part at a timestep, given what it reads; returns what other parts may read of it."""


class AsyncRun:
    """One run of a denoising loop, whose every call of the U-Net asks it for the noise.

    Args:
        plan: who runs what.
        processes: this process among the others, or one that does the work of all (`processes.OneProcess`).
        scheduler: whose timesteps the loop goes through, from the first one.
    """

    def __init__(self, plan: Plan, processes: Any, scheduler: Any) -> None:
        self._plan, self._processes, self._scheduler = plan, processes, scheduler
        self._roles = processes.roles(plan)
        self._kept = {plan.last_layer}.union(*(plan.reads(role) for role in self._roles))
        self._step = 0
        self._outputs: Outputs = {}  # of the round before, as far as they are read here
        self._noises: deque[Tensor] = deque()  # of the steps of the round under way that are still to come

    def noise(self, timestep: Tensor, run_part: RunPart) -> Tensor:
        """The predicted noise of the next step, whose timestep this is."""
        plan, i = self._plan, self._step
        self._step += 1
        if plan.warm_up > (calls := len(self._scheduler.timesteps)):
            raise ValueError(f"warm_up is {plan.warm_up}; the U-Net is called {calls} times, so {calls} is the most")

        # async (1): "Asynchronous Denoising", the warm-up. Every process runs all parts, each on what is new.
        if i < plan.warm_up:
            outputs: Outputs = {}
            for part in plan.parts:
                outputs |= run_part(part, timestep, outputs)
            if i == plan.warm_up - 1:
                self._keep(outputs)
            return outputs[plan.last_layer]

        if not self._noises:
            # async (2): the parts run at the same time, each on the outputs of the round before. The first part alone
            # sees the latents of this step; what the last one puts out goes back to those of n − 1 rounds earlier.
            made = {
                role: run_part(plan.part(role), self._timestep(i + plan.offset(role), timestep), self._outputs)
                for role in self._roles
            }
            # async (3): what a part of another process reads is sent there, the noise to all of them
            made = self._processes.exchange(plan, made, self._outputs)
            n = len(plan.parts)
            self._keep({layer: output for role in made if role < n for layer, output in made[role].items()})
            # async (4): "Stride Denoising", one round has the noise of several steps
            self._noises.extend(made[role][plan.last_layer] for role in (*range(n, plan.num_processes), n - 1))
        return self._noises.popleft()

    def _keep(self, outputs: Outputs) -> None:
        self._outputs = {layer: output for layer, output in outputs.items() if layer in self._kept}

    def _timestep(self, position: int, timestep: Tensor) -> Tensor:
        """That of a step, or with the time shift of the one before it; after the last step there is none."""
        timesteps = self._scheduler.timesteps
        position = min(position, len(timesteps) - 1) - self._plan.time_shift
        return timesteps[position].to(timestep.device, timestep.dtype)
