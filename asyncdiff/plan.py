"""How a U-Net is cut into parts, and which process runs which part at which step.

A U-Net of M pairs (`unets/unet_2d_condition.py`) has 2M + 1 layers, numbered in the order in which they run:

    layer   0 … M − 1         M        M + 1 … 2M
            d_0 … d_{M-1}     middle   u_{M-1} … u_0

u_k, layer 2M − k, takes the output of the layer before it and that of layer k, its skip. A part is a run of consecutive
layers. Of other parts it reads the output of the layer before its first, and those skips that it does not make itself.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """What every process of a run knows alike.

    Args:
        parts: the layers of each part, in order.
        warm_up: steps that run as in the plain pipeline, before the parts run at once.
        stride: steps that are denoised by one round of the parts. More than 1 needs as many processes more, which run
            the last part at the other timesteps.
        time_shift: after the warm-up the timestep that the U-Net is told is that of the step before, from which most of
            what it computes with is.

    Raises:
        ValueError: parts that are not the layers in order; a number out of range.
    """

    parts: tuple[range, ...]
    warm_up: int = 1
    stride: int = 1
    time_shift: bool = False

    def __post_init__(self) -> None:
        layers = [i for part in self.parts for i in part]
        if not all(self.parts) or layers != list(range(len(layers))) or len(layers) % 2 == 0:
            raise ValueError(f"the parts are {self.parts}; they must be all layers of a U-Net, in order, none empty")
        if self.warm_up < 1:
            raise ValueError(f"warm_up is {self.warm_up}; it must be at least 1, since the parts go by an earlier step")
        if self.stride < 1:
            raise ValueError(f"stride is {self.stride}; it must be at least 1")
        if self.stride > 1 and len(self.parts) == 1:
            raise ValueError(f"stride is {self.stride}, with one part; it needs at least two")

    @property
    def last_layer(self) -> int:
        """2M, the number of u_0, whose output is the predicted noise."""
        return self.parts[-1].stop - 1

    @property
    def num_processes(self) -> int:
        return len(self.parts) + self.stride - 1

    def part(self, process: int) -> range:
        """The layers that a process runs: after one process for each part, the others run the last part too."""
        return self.parts[min(process, len(self.parts) - 1)]

    def offset(self, process: int) -> int:
        """Of the steps of a round, 0 to stride − 1, the one whose timestep a process takes.

        The parts go by the last, since it is the next round that reads them; the processes beyond predict the noise of
        the others.
        """
        return self.stride - 1 if process < len(self.parts) else process - len(self.parts)

    def reads(self, process: int) -> set[int]:
        """The layers of other parts whose outputs its part takes."""
        part, last = self.part(process), self.last_layer
        before = {part.start - 1} if part.start else set()
        return before | {last - i for i in part if i > last // 2 and last - i < part.start}

    def sent(self, source: int, target: int) -> list[int]:
        """The layers whose outputs go from one process to another after each round: what is read, and the noise."""
        layers = self.reads(target) & set(self.part(source)) if source < len(self.parts) else set()
        return sorted(layers | ({self.last_layer} if source >= len(self.parts) - 1 else set()))

    def bound(self, costs: Sequence[int], num_calls: int) -> float:
        """The speed-up of `num_calls` calls of the U-Net, if time went by the layers' costs and nothing was sent."""
        warm_up = min(self.warm_up, num_calls)
        rounds = math.ceil((num_calls - warm_up) / self.stride)
        slowest = max(sum(costs[i] for i in part) for part in self.parts)
        return num_calls * sum(costs) / (warm_up * sum(costs) + rounds * slowest)


def cut(costs: Sequence[int], num_parts: int) -> tuple[range, ...]:
    """The cut into consecutive parts whose costliest is cheapest.

    Raises:
        ValueError: more parts than layers.
    """
    if not 1 <= num_parts <= len(costs):
        raise ValueError(f"the U-Net has {len(costs)} layers, which can't be cut into {num_parts} parts; take fewer")

    @functools.cache
    def best(start: int, left: int) -> tuple[int, tuple[int, ...]]:
        """Of the layers from `start` on: the cost of the costliest part, and where the parts start."""
        if left == 1:
            return sum(costs[start:]), (start,)
        rest = {stop: best(stop, left - 1) for stop in range(start + 1, len(costs) - left + 2)}
        return min((max(sum(costs[start:stop]), cost), (start, *starts)) for stop, (cost, starts) in rest.items())

    return cut_at(best(0, num_parts)[1][1:], len(costs))


def cut_at(starts: Sequence[int], num_layers: int) -> tuple[range, ...]:
    """The parts of which all but the first start at these layers.

    Raises:
        ValueError: no such layers, or not in order.
    """
    bounds = [0, *starts, num_layers]
    if any(a >= b for a, b in itertools.pairwise(bounds)):
        raise ValueError(f"the parts start at layers {list(starts)}; these must rise, from 1 to {num_layers - 1}")
    return tuple(range(a, b) for a, b in itertools.pairwise(bounds))


def layer_name(i: int, last_layer: int) -> str:
    """d_k, middle or u_k."""
    middle = last_layer // 2
    return "middle" if i == middle else f"d_{i}" if i < middle else f"u_{last_layer - i}"
