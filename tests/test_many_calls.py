"""Many calls in a row leave nothing in memory."""

import gc
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pipelines import LDMClassPipeline
from tests import tiny_ldm
from tests.families import FAMILIES
from tests.tiny import stock_unet
from tests.two_levels import IMAGE_UNET, small
from unets import DeepCacheSDHelper

WARM_UP, CALLS, TRACED = 10, 80, 40  # the last are traced, which takes several times as long
CACHE: dict[str, Any] = {"cache_interval": 2, "cache_branch_id": 1}
EXTENSIONS = {"forecast": 1.0, "reuse_guidance": True, "reuse_attention": True}
# Python's free lists of tuples and the like fill up while memory is traced: 10 to 20 KiB, and then no more.
# A call that left its loop, its cache or a frame would leave over 1 KiB each time. Tensors' numbers are torch's memory,
# which isn't traced, so tensors are counted.
TOLERANCE = 32 * 1024  # bytes


def living_tensors() -> int:
    gc.collect()
    return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())


def call(name: str, pipe: Any, **extra: Any) -> Callable[[], Any]:
    """As small as a call can be: 16 × 16 pixels, two steps."""
    arguments: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent", **extra}
    if name == "ldm":
        return lambda: pipe([1], **arguments)
    if name != "sd-img2img":
        arguments |= {"height": 16, "width": 16}
    return lambda: pipe(**{**FAMILIES[name].arguments, **arguments})


def fork(name: str, **extra: Any) -> Callable[[], Any]:
    return call(name, small_ldm() if name == "ldm" else small(name).pair()[1], **CACHE, **extra)


def small_ldm() -> LDMClassPipeline:
    """With a U-Net of two levels too."""
    unet = stock_unet("ldm4", cross_attention_dim=16, **{**IMAGE_UNET, "sample_size": 4})
    pipe = LDMClassPipeline(**{**tiny_ldm.parts(), "unet": unet})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def helped(again: bool) -> Callable[[], Any]:
    """A stock pipeline with the plug-in, which stays on, or is switched on for each call."""
    pipe = small("sd").pair()[0]
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(**CACHE)
    once = call("sd", pipe)
    if not again:
        helper.enable()
        return once

    def switched_on() -> None:
        with helper:
            once()

    return switched_on


def refused() -> Callable[[], Any]:
    """A stock pipeline with the plug-in, whose calls end in a refused call in a callback."""
    pipe = small("sd").pair()[0]
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(**CACHE)
    helper.enable()
    once: Callable[[], Any] = call("sd", pipe, callback_on_step_end=lambda *_: once())

    def in_vain() -> None:
        with pytest.raises(RuntimeError, match="already running"):
            once()

    return in_vain


MADE: dict[str, Callable[[], Callable[[], Any]]] = {
    "fork": lambda: fork("sd", **EXTENSIONS),
    "fork, image to image": lambda: fork("sd-img2img"),
    "fork, LDM": lambda: fork("ldm"),
    "plug-in": lambda: helped(again=False),
    "plug-in, switched on each time": lambda: helped(again=True),
    "plug-in, refused": refused,
}


@pytest.mark.parametrize("made", MADE)
def test_many_calls_leave_no_tensor_and_no_memory(made):
    once = MADE[made]()
    for _ in range(WARM_UP):
        once()
    tensors = living_tensors()
    for _ in range(CALLS - TRACED):
        once()
    tracemalloc.start()
    try:
        for _ in range(WARM_UP // 2):
            once()
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(TRACED):
            once()
        assert living_tensors() == tensors  # which collects garbage
        assert tracemalloc.get_traced_memory()[0] - before < TOLERANCE
    finally:
        tracemalloc.stop()


def test_a_leak_of_one_tensor_a_call_would_be_seen():
    tensors, kept = living_tensors(), [torch.zeros(4, 8, 8) for _ in range(3)]
    assert living_tensors() == tensors + len(kept)
