"""MACs of a run's U-Net calls, attention's products included, for shipped models and published layouts."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from eval.counting.layouts import Model, open_model
from eval.counting.macs import unet_inputs
from eval.counting.runs import Counted, count_run
from unets.cache.config import CacheConfig


class Layout:
    """A U-Net without its weights, by a name or path as for `open_model`, and the inputs of its calls.

    Args:
        tokens: of the text; by default the layout's own number.
        guided: whether a call has both halves of guidance.
    """

    def __init__(self, name: str | Path, *, guided: bool, tokens: int | None = None) -> None:
        self._name, self._guided, self._tokens = str(name), guided, tokens
        self._counted: Counted = {}

    @cached_property
    def _model(self) -> Model:
        return open_model(self._name)

    @cached_property
    def _fork(self) -> Any:
        return self._model.on_meta()

    def macs(self, cache: CacheConfig, num_calls: int, num_steps: int) -> int:
        """MACs of a run with that many calls and steps."""
        tokens = self._tokens or self._model.tokens
        inputs = unet_inputs(self._fork, *self._model.size, batch=2 if self._guided else 1, tokens=tokens)
        run = count_run(
            self._fork, inputs, cache, num_calls, num_steps=num_steps, guided=self._guided, counted=self._counted
        )
        return sum(macs.with_attention for macs in run)
