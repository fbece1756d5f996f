"""A U-Net's forward compiled: one graph for each kind of step, compiled once for all runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def compile_forward(unet: Any, **options: Any) -> None:
    """Compiles `unet.forward`, hooks staying outside, so that those which move weights or take the time still work.

    What a CUDA graph returns lies in memory of its own that its next call overwrites, while the loop keeps a feature
    for many steps, and a sampler the noise: so all that a call returns is copied out. What was given is not.

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
        kept = {} if given is None else {"cached_feature": given}  # what a retrieve step was given it hands back
        return type(output)(**{name: _copied(value) for name, value in output.items() if name not in kept}, **kept)

    unet.forward = forward


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    return tuple(_copied(v) for v in value) if isinstance(value, tuple) else value
