"""What a pipeline's U-Net is called with, noted call by call. Call them before the run that is to be watched."""

from __future__ import annotations

from typing import Any


def full_steps_of(pipe: Any) -> list[bool]:
    """A list that will hold, for every call of the U-Net, whether it was a full one."""
    full: list[bool] = []
    pipe.unet.register_forward_pre_hook(
        lambda _, __, kwargs: full.append(kwargs.get("cached_feature") is None), with_kwargs=True
    )
    return full


def batch_sizes_of(pipe: Any) -> list[int]:
    """A list that will hold the batch size of every call of the U-Net."""
    sizes: list[int] = []
    pipe.unet.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    return sizes
