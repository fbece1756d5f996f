"""The building blocks of checks: the device with one model at a time, and the result of a check."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from common.device import DTYPES, is_fast
from common.memory import peak_memory
from common.timing import alternate
from pipelines.loading import place_pipeline

from .subjects import Subject, make_subject

MOST_ROUNDS = 7


class Finding(NamedTuple):
    """The result of a check: one line, whether it passed, and rows of figures if there are more."""

    text: str
    right: bool = True
    rows: tuple[dict[str, Any], ...] = ()


@dataclass
class Bench:
    """The device, and the model that the last check left on it, which the next may reuse."""

    device: torch.device
    tiny: bool = False
    _key: tuple[Any, ...] | None = field(default=None, repr=False)
    _subject: Subject | None = field(default=None, repr=False)

    @property
    def dtypes(self) -> list[str]:
        """The dtypes that are checked: 16-bit ones, unless the device is slow in them."""
        return [dtype for dtype in ("float16", "bfloat16") if is_fast(dtype, self.device)] or ["float32"]

    def subject(self, name: str, dtype: str, compiled_for: int | None = None) -> Subject:
        """A model, its forward compiled for a batch size if one is given; reused if possible."""
        key = (name, dtype, compiled_for)
        if self._subject is None or self._key != key:
            self.clear()
            self._subject = make_subject(name, DTYPES[dtype], self.device, self.tiny)
            if compiled_for is not None:
                place_pipeline(self._subject.pipe, self.device, channels_last=False, compiled=True, cpu_offload=False)
            self._key = key
        return self._subject

    def clear(self) -> None:
        """Frees the model and everything that was compiled."""
        self._subject = self._key = None
        torch._dynamo.reset()
        gc.collect()
        with contextlib.suppress(RuntimeError):  # a device in a lasting error state: the following checks report it
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def reset_peak(self) -> None:
        """Resets the peak memory, where the device can."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> int:
        """Peak of allocated bytes since `reset_peak`; on a CPU the peak of the whole process."""
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else peak_memory()


def rounds(calls: Sequence[Callable[[], Any]], seconds: float) -> list[list[Any]]:
    """Results of each call, made in turn (A B A B …): as many rounds as fit into the seconds, at least one."""
    results: list[list[Any]] = [[] for _ in calls]
    start = time.perf_counter()
    for done in range(1, MOST_ROUNDS + 1):
        for all_of_call, once in zip(results, alternate(calls, 1), strict=True):
            all_of_call += once
        spent = time.perf_counter() - start
        if spent * (done + 1) / done > seconds:
            break
    return results
