"""Compiles a U-Net's forward: one graph for each kind of step, compiled once for all runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def compile_forward(unet: Any, **options: Any) -> None:
    """Compiles `unet.forward`. Hooks stay outside, so those that move weights or measure time still work.

    A CUDA graph's next call overwrites its outputs, but the loop keeps a feature for many steps, and a sampler keeps
    the noise. So all outputs are copied, except for a feature that was passed in.

    Args:
        options: torch.compile's, for example mode="reduce-overhead" for CUDA graphs.
    """
    graph: Any = torch.compile(unet.forward, fullgraph=True, **options)

    def forward(*args: Any, **kwargs: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        output = graph(*args, **kwargs)
        if isinstance(output, tuple):
            return _copied(output)
        given = kwargs.get("cached_feature")
        kept = {} if given is None else {"cached_feature": given}  # a retrieve step returns it
        return type(output)(**{name: _copied(value) for name, value in output.items() if name not in kept}, **kept)

    unet.forward = forward


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    return tuple(_copied(v) for v in value) if isinstance(value, tuple) else value
