"""Observes a run in which every step is full: the inputs, noise prediction and feature of each call of the U-Net."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

Observer = Callable[[dict[str, Any], Tensor, Tensor], None]


@contextmanager
def observed_calls(unet: Any, cache_branch_id: int, observe: Observer) -> Iterator[None]:
    """Inside the block, every call of a fork caches its feature at the branch and is passed to `observe`.

    The call's output is unchanged. Direct calls of `unet.forward` are not observed.

    Args:
        unet: a fork, called by runs in which every step is full.
        cache_branch_id: m, 0 to M − 1.
        observe: gets the call's arguments by name, the predicted noise (B, …) and the feature (B, C, H, W), for a
            video (B * frames, C, H, W).

    Raises:
        ValueError: no such branch; or, raised by the call itself, a run that has a cache of its own.
    """
    unet.check_branch(cache_branch_id)
    signature = inspect.signature(unet.forward)

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if kwargs.get("cache_branch_id") is not None:
            raise ValueError("the run has a cache of its own; run with cache_interval=1")
        return args, kwargs | {"cache_branch_id": cache_branch_id}

    def show(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        inputs = signature.bind(*args, **kwargs).arguments
        if isinstance(output, tuple):
            observe(inputs, output[0], output[1])
            return output[:1]
        observe(inputs, output.sample, output.cached_feature)
        return type(output)(sample=output.sample)

    hooks = [
        unet.register_forward_pre_hook(keep, with_kwargs=True),
        unet.register_forward_hook(show, with_kwargs=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
