"""A stock pipeline with the authors' package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from common.original_package import original_package


@contextmanager
def original_helper(pipe: Any, **settings: Any) -> Iterator[None]:
    """While open, the package's cache is enabled; afterwards the U-Net is as it was."""
    helper = original_package().DeepCacheSDHelper(pipe=pipe)
    helper.set_params(**settings)
    helper.enable()
    try:
        yield
    finally:
        helper.disable()
        for module in pipe.unet.modules():  # where it leaves each module's own, as if somebody had replaced it
            vars(module).pop("forward", None)
