"""How many operations a step dispatches, in the U-Net and around it: on a GPU each costs a launch, however small it is.

Counted are PyTorch's own (ATen), without views, which launch nothing, on a device that isn't there. The layout is that
of Stable Diffusion 1.5, with guidance, features kept at branch 0, and at branch 5 for refresh steps, everything beyond
the paper on. The numbers are upper bounds, measured; where a change needs fewer, write the fewer down.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pipelines
from pipelines.loading import new_scheduler
from tests import tiny
from tests.absent_device import DeviceTensor, absent_device
from unets.cache.run import CacheRun

# By kind of step: the U-Net; the cache, on the device, and on the host, where arithmetic with single numbers is an
# operation as well; and the loop, which joins the halves of guidance and takes them apart.
STEPS = {  # U-Net, cache (device, host), loop
    "full": (725, (2, 0), 4),
    "refresh": (414, (3, 0), 4),
    "retrieve": (58, (4, 0), 3),
    "retrieve, attention reused": (32, (5, 0), 3),
    "skip": (0, (1, 0), 4),
}
SAMPLERS = {  # (device, host), in every kind of step
    "plms": (12, 16),
    "ddim": (6, 25),
    "dpm++": (10, 48),
    "euler": (8, 10),  # with the noise that it draws for nothing, counted as of the host
    "unipc": (32, 98),
}
SETTINGS: dict[str, Any] = {
    "cache_interval": 4, "cache_branch_id": 0, "refresh_interval": 2, "refresh_branch_id": 5, "forecast": 1.0,
    "reuse_guidance": True,
}  # fmt: skip
KINDS = {4: "full", 5: "retrieve", 6: "refresh", 7: "retrieve"}  # of the 10 steps, those with all of their past


class Count(TorchDispatchMode):
    """Operations by step, by the part of the step, and by whether the device is concerned."""

    def __init__(self) -> None:
        super().__init__()
        self.part = "loop"
        self.steps: list[Counter[tuple[str, str]]] = [Counter()]

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        schema = function._schema
        view = not schema.is_mutable and any(value.alias_info is not None for value in schema.returns)
        if not view and "view" not in schema.name:
            there = any(isinstance(leaf, DeviceTensor) for leaf in tree_leaves((args, kwargs)))
            self.steps[-1][self.part, "device" if there else "host"] += 1
        return function(*args, **(kwargs or {}))

    def of(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, whose operations are of that part of the step."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.part, before = part, self.part
            try:
                return call(*args, **kwargs)
            finally:
                self.part = before

        return counted


def counts(sampler: str, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> dict[str, Counter[tuple[str, str]]]:
    """The most that a step of each kind dispatches."""
    parts = tiny.parts()
    parts["scheduler"] = new_scheduler(sampler, parts["scheduler"].config)
    pipe = pipelines.StableDiffusionPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    count = Count()

    def step_ended(*_: Any) -> dict[str, Any]:
        count.steps.append(Counter())
        return {}

    with absent_device():
        pipe.to("cuda")
        text, noise = torch.ones(1, 7, 24, device="cuda"), torch.ones(1, 4, 8, 8, device="cuda")
        for owner, name, part in (
            (pipe.unet, "forward", "unet"),
            (pipe.scheduler, "step", "sampler"),
            (pipe.scheduler, "scale_model_input", "sampler"),
            (CacheRun, "plan", "cache"),
            (CacheRun, "take", "cache"),
        ):
            monkeypatch.setattr(owner, name, count.of(part, getattr(owner, name)))
        with count:
            pipe(
                prompt_embeds=text, negative_prompt_embeds=text, latents=noise, num_inference_steps=10,
                output_type="latent", callback_on_step_end=step_ended, **(SETTINGS | settings),
            )  # fmt: skip
    found: dict[str, Counter[tuple[str, str]]] = {kind: Counter() for kind in KINDS.values()}
    for i, kind in KINDS.items():
        found[kind] |= count.steps[i]
    return found


def check(kind: str, found: Counter[tuple[str, str]], sampler: str) -> None:
    unet, cache, loop = STEPS[kind]
    bounds = {"unet": (unet, unet), "cache": cache, "loop": (loop, 0), "sampler": SAMPLERS[sampler]}
    assert found["unet", "device"] + found["unet", "host"] <= unet
    for part, (on_device, on_host) in bounds.items():
        assert found[part, "device"] <= on_device, (part, kind)
        assert found[part, "host"] <= on_host, (part, kind)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_step_dispatches_no_more_than_this(sampler, monkeypatch):
    for kind, found in counts(sampler, monkeypatch).items():
        check(kind, found, sampler)


def test_a_step_that_reuses_attention_dispatches_no_more_than_this(monkeypatch):
    found = counts("plms", monkeypatch, reuse_attention=True)
    check("retrieve, attention reused", found["retrieve"], "plms")


def test_a_skipped_step_dispatches_no_more_than_this(monkeypatch):
    skipping = {"refresh_interval": None, "refresh_branch_id": None, "skip_interval": 4}
    found = counts("plms", monkeypatch, **skipping)
    check("full", found["full"], "plms")
    for kind in ("retrieve", "refresh"):  # what they would be otherwise
        check("skip", found[kind], "plms")
        assert found[kind]["unet", "device"] == 0
