"""A case run with the plug-in, with the authors' package; and a pipeline offloaded."""

from __future__ import annotations

import functools
from typing import Any

import accelerate
import torch

from common.original_package import original_package
from tests.plugin.cases import Case
from unets import DeepCacheSDHelper


def with_plug_in(case: Case, pipe: Any, extra: dict[str, Any] | None = None, **settings: Any) -> torch.Tensor:
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(**settings)
    with helper:
        return case.run(pipe, **(extra or {}))


def with_package(case: Case, pipe: Any, extra: dict[str, Any] | None = None, **settings: Any) -> torch.Tensor:
    helper = original_package().DeepCacheSDHelper(pipe)
    helper.set_params(**settings)
    helper.enable()
    try:
        return case.run(pipe, **(extra or {}))
    finally:
        helper.disable()
        for module in pipe.unet.modules():  # where it leaves each module's own, as if somebody had replaced it
            vars(module).pop("forward", None)


def offload(pipe: Any, kind: str) -> None:
    """The accelerator is the CPU itself here: every hook runs, and no weight has far to go."""
    if kind == "model":
        # diffusers offloads anew after every call, then to CUDA whatever was said before
        pipe.enable_model_cpu_offload = functools.partial(type(pipe).enable_model_cpu_offload, pipe, device="cpu")
        pipe.enable_model_cpu_offload()
        return
    # What diffusers' sequential offloading does, with parameters: accelerate takes no other tensors where the device
    # stays the same.
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            accelerate.cpu_offload(part, torch.device("cpu"), state_dict=dict(part.named_parameters()))
