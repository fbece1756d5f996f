"""Observes each step of a run at its U-Net, and can stop the run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

FULL, REFRESH, RETRIEVE, SKIP = KINDS = ("full", "refresh", "retrieve", "skip")


class Stopped(Exception):
    """The run was asked to stop."""


@dataclass(frozen=True)
class StepSeen:
    """What one step of the loop did."""

    kind: str
    branch: int | None = None  # where it retrieved
    rows: int = 0  # of the batch that the U-Net was called with


class Watch:
    """Observes a run's steps as they are made, and stops it between two of them.

    Args:
        stop: once set, the run ends with `Stopped` at its next step.
        on_step: called after each step with the number of steps so far.

    Attributes:
        steps: those that are done.
    """

    def __init__(self, stop: threading.Event, on_step: Callable[[int], None]) -> None:
        self.steps: list[StepSeen] = []
        self._stop = stop
        self._on_step = on_step
        self._called: StepSeen | None = None

    @contextmanager
    def watching(self, unet: nn.Module, *, each_call: bool) -> Iterator[None]:
        """While open, observes the U-Net's calls; with `each_call` each is a step, else `step_end` marks steps."""
        hooks = [unet.register_forward_pre_hook(self._before, with_kwargs=True)]
        if each_call:
            hooks.append(unet.register_forward_hook(lambda *_: self._done()))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def step_end(self, _pipe: Any, _i: int, _t: Any, _tensors: dict[str, Any]) -> dict[str, Any]:
        """A pipeline's `callback_on_step_end`."""
        self._done()
        return {}

    def _before(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._raise_if_stopped()
        rows = len(args[0])
        if kwargs.get("cached_feature") is None:
            self._called = StepSeen(FULL, None, rows)
        else:
            kind = RETRIEVE if kwargs.get("keep_branch_id") is None else REFRESH
            self._called = StepSeen(kind, kwargs["cache_branch_id"], rows)

    def _done(self) -> None:
        self.steps.append(self._called or StepSeen(SKIP))
        self._called = None
        self._on_step(len(self.steps))
        self._raise_if_stopped()

    def _raise_if_stopped(self) -> None:
        if self._stop.is_set():
            raise Stopped
