"""The cost of a schedule in MACs of the U-Net, attention's matrix products included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..counting.macs import count_steps, unet_inputs
from .baseline import Call


@dataclass(frozen=True)
class StepMacs:
    """MACs of a full and of a retrieve step at a branch, in a run of `num_calls` calls."""

    full: int
    retrieve: int
    num_calls: int

    def speed_up(self, num_full: int) -> float:
        """The run's reduction of MACs with that many full steps."""
        return self.num_calls * self.full / (num_full * self.full + (self.num_calls - num_full) * self.retrieve)

    def most_full_steps(self, speed_up: float, positions: int) -> int:
        """The most full steps, fewer than `positions`, with that speed-up; 0 if not even one has it."""
        return max((k for k in range(1, positions) if self.speed_up(k) >= speed_up), default=0)


def step_macs(unet: Any, cache_branch_id: int, calls: Sequence[Call], reuse_attention: bool = False) -> StepMacs:
    """Counts the steps of a run with these calls, retrieve steps with attention reused or not."""
    call = calls[0]
    tokens = call.context[1] if call.context else 77
    inputs = unet_inputs(unet, *call.sample[-2:], tokens=tokens)
    full, retrieve = count_steps(unet, inputs, cache_branch_id, keep_attention=reuse_attention)
    return StepMacs(full.with_attention, retrieve.with_attention, len(calls))
