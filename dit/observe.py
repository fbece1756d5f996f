"""Watching a run in which every step is full: what the transformer is given at each step, and what its layers give."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.models.transformer_2d import Transformer2DModelOutput
from torch import Tensor

from .transformer import CachedTransformerOutput, Transformer2DModel

See = Callable[[dict[str, Any], CachedTransformerOutput], None]


@contextmanager
def observed_steps(transformer: Transformer2DModel, see: See) -> Iterator[None]:
    """While open, each call of the fork is shown to `see`: its arguments by name, and its output with all layers'.

    The caller gets what it would have had otherwise. Direct calls of `transformer.forward` are not observed.
    """

    def keep(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if kwargs.get("reused") is not None:
            raise ValueError("the run has a cache of its own; observe one without")
        return (), {"hidden_states": args[0], **kwargs, "reused": [None] * (2 * transformer.depth)}

    def show(_: Any, __: tuple[Any, ...], kwargs: dict[str, Any], output: CachedTransformerOutput) -> Any:
        see({name: value for name, value in kwargs.items() if name != "reused"}, output)
        return Transformer2DModelOutput(sample=output.sample)

    hooks = [
        transformer.register_forward_pre_hook(keep, with_kwargs=True),
        transformer.register_forward_hook(show, with_kwargs=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def guided_noise(sample: Tensor, channels: int, guidance_scale: float) -> Tensor:
    """What a sampler gets of the transformer's output, float32: without the learned variance, both halves combined.

    Args:
        sample: (2B, 2C, H, W), first the conditional half; or (B, 2C, H, W) of a run without guidance, a scale up to 1.

    Returns:
        (B, C, H, W).
    """
    noise = sample[:, :channels].float()
    if guidance_scale <= 1:
        return noise
    conditional, unconditional = noise.chunk(2)
    return unconditional + guidance_scale * (conditional - unconditional)
