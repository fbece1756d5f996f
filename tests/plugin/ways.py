"""A case run with the plug-in, and with the authors' package."""

from __future__ import annotations

from typing import Any

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
