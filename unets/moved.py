"""Names that moved between diffusers 0.24.0 and 0.42.1, imported from where the installed release has them."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import diffusers


def find(name: str, *modules: str) -> Any:
    """The class `name` from the first of the modules that has it.

    Raises:
        ImportError: none of them does.
    """
    for module in modules:
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            continue
    raise ImportError(
        f"diffusers {diffusers.__version__} has no {name} in {' or '.join(modules)}; install a release that DeepCache "
        'was tested with: pip install "diffusers>=0.24.0,<0.43"'
    )


ControlNetOutput: Any = find("ControlNetOutput", diffusers.ControlNetModel.__module__)
MultiControlNetModel: Any = find(
    "MultiControlNetModel", "diffusers.models.controlnets.multicontrolnet", "diffusers.pipelines.controlnet"
)
_motion = sys.modules[diffusers.UNetMotionModel.__module__]
UNetMotionOutput: Any = getattr(_motion, "UNetMotionOutput", None) or _motion.UNet3DConditionOutput
