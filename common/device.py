"""Where, and in which precision, a command runs."""

from __future__ import annotations

from typing import Any

import torch

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def add_device_arguments(parser: Any, dtype: str | None = None) -> None:
    """`--device` and `--dtype`, whose default is `dtype` or what suits the device."""
    parser.add_argument("--device", help="cuda, mps or cpu (default: first available)")
    help_text = "of the networks" if dtype else "(default: float16 on CUDA, else float32)"
    parser.add_argument("--dtype", choices=list(DTYPES), default=dtype, help=help_text)


def resolve_device(name: str | None) -> torch.device:
    """The device of that name, or the first available.

    Raises:
        ValueError: a device that is not available.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    names = [one for one, is_available in available.items() if is_available]
    name = name or names[0]
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"unknown --device {name!r}; use cuda, mps or cpu") from None
    if device.type not in names or (device.index or 0) >= max(1, torch.cuda.device_count()):
        raise ValueError(f"--device {name} is not available (available: {', '.join(names)})")
    return device


def resolve_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """The dtype of that name, or what suits the device."""
    return DTYPES[name or ("float16" if device.type == "cuda" else "float32")]
