"""Times a pipeline's parts, and compares ways to run it in turn in one process."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


@dataclass
class CallTimes:
    """Seconds of each call of each part of a pipeline, within one call of it."""

    full_steps: list[float] = field(default_factory=list)
    retrieve_steps: list[float] = field(default_factory=list)
    text: list[float] = field(default_factory=list)
    image_encoder: list[float] = field(default_factory=list)
    controlnet: list[float] = field(default_factory=list)
    vae: list[float] = field(default_factory=list)

    @property
    def unet(self) -> float:
        """Seconds spent in the U-Net."""
        return sum(self.full_steps) + sum(self.retrieve_steps)


class Clock:
    """Marks moments on a device without making the host wait for it, where the device can (CUDA)."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def mark(self) -> Any:
        """A moment, for `seconds`."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self.device))
            return event
        self.synchronise()
        return time.perf_counter()

    def seconds(self, start: Any, end: Any) -> float:
        """Seconds between two moments; waits for the device if it has not reached the second."""
        if self.device.type == "cuda":
            end.synchronize()
            return start.elapsed_time(end) / 1000
        return end - start

    def synchronise(self) -> None:
        """Waits until the device has finished all its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()


@contextmanager
def timed_parts(pipe: Any, clock: Clock) -> Iterator[CallTimes]:
    """While open, records when each part of `pipe` starts and ends; the seconds are available once it is closed."""
    times = CallTimes()
    marks: dict[str, list[tuple[Any, Any]]] = defaultdict(list)
    starts: dict[str, Any] = {}
    hooks = []

    def watch(module: nn.Module | None, part_of: Callable[[dict], str]) -> None:
        def before(_: nn.Module, __: Any, kwargs: dict) -> None:
            starts[part_of(kwargs)] = clock.mark()

        def after(_: nn.Module, __: Any, kwargs: dict, ___: Any) -> None:
            part = part_of(kwargs)
            marks[part].append((starts.pop(part), clock.mark()))

        if module is not None:
            hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
            hooks.append(module.register_forward_hook(after, with_kwargs=True))

    watch(pipe.unet, lambda kwargs: "full_steps" if kwargs.get("cached_feature") is None else "retrieve_steps")
    for name in ("text_encoder", "text_encoder_2"):
        watch(getattr(pipe, name, None), lambda _: "text")
    watch(getattr(pipe, "image_encoder", None), lambda _: "image_encoder")
    watch(getattr(pipe, "controlnet", None), lambda _: "controlnet")
    for name in ("encoder", "decoder"):
        watch(getattr(getattr(pipe, "vae", None), name, None), lambda _: "vae")
    try:
        yield times
    finally:
        for hook in hooks:
            hook.remove()
    for part, pairs in marks.items():
        setattr(times, part, [clock.seconds(*pair) for pair in pairs])


def time_call(
    pipes: Sequence[Any], call: Callable[[], Any], device: torch.device
) -> tuple[Any, float, list[CallTimes]]:
    """What `call` returns, how long it took, and how long the parts of each of `pipes` took within it."""
    clock = Clock(device)
    with ExitStack() as stack:
        times = [stack.enter_context(timed_parts(pipe, clock)) for pipe in pipes]
        clock.synchronise()
        start = time.perf_counter()
        result = call()
        clock.synchronise()
        whole = time.perf_counter() - start
    return result, whole, times


def alternate(calls: Sequence[Callable[[], Any]], repeats: int) -> list[list[Any]]:
    """Results of each call, made in turn (A B A B …), so that whatever slows the machine down affects all alike."""
    results: list[list[Any]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, own in zip(calls, results, strict=True):
            own.append(call())
    return results


def spread(values: list[float]) -> dict[str, float]:
    """Median, minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def pairwise(slow: list[float], fast: list[float]) -> dict[str, float]:
    """Median, minimum and maximum of the ratios of pairs measured one after the other: the speed-up."""
    return spread([s / f for s, f in zip(slow, fast, strict=True)])
