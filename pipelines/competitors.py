"""Other accelerations of a diffusers pipeline, for comparison: the authors' package and token merging."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import diffusers

from common.original_package import INSTALL as INSTALL_DEEPCACHE
from common.original_package import original_package
from unets.cached_unet import shallow_clone

INSTALL = {"DeepCache": INSTALL_DEEPCACHE, "tomesd": "pip install tomesd==0.1.3"}


def stock_pipeline(pipe: Any) -> Any:
    """The stock pipeline over the same weights, with a stock U-Net."""
    unet = shallow_clone(pipe.unet, diffusers.UNet2DConditionModel)
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    parts = {**pipe.components, "unet": unet, "scheduler": scheduler}
    return diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)


def is_installed(module: str) -> bool:
    """Whether a competitor of `INSTALL` can be measured."""
    if module != "DeepCache":
        return importlib.util.find_spec(module) is not None
    try:
        return original_package() is not None
    except ImportError:
        return False


@contextmanager
def package_enabled(pipe: Any, interval: int, branch: int) -> Iterator[None]:
    """Enables the authors' package on a stock pipeline inside the block. It wraps modules that others share."""
    helper = original_package().DeepCacheSDHelper(pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=branch)
    helper.enable()
    try:
        yield
    finally:
        helper.disable()


@contextmanager
def tokens_merged(pipe: Any, ratio: float) -> Iterator[None]:
    """Enables tomesd on a pipeline inside the block."""
    tomesd = importlib.import_module("tomesd")
    tomesd.apply_patch(pipe, ratio=ratio)
    try:
        yield
    finally:
        tomesd.remove_patch(pipe)
