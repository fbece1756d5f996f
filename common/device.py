"""The device and dtype of a command."""

from __future__ import annotations

import functools
import platform
import sys
from typing import Any

import torch

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def add_device_arguments(parser: Any, dtype: str | None = None) -> None:
    """`--device` and `--dtype`, whose default is `dtype` or what suits the device."""
    parser.add_argument("--device", help="cuda, mps or cpu (default: first available)")
    help_text = "dtype of the networks" if dtype else "(default: float16 on CUDA, else float32)"
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


def resolve_dtype(name: str | None, device: torch.device, default: str | None = None) -> torch.dtype:
    """The dtype of that name, or `default`, or what suits the device; warns if it is slow on the device.

    A slow default is replaced by float32: only an explicit request is slow.
    """
    if name is None:
        default = default or ("float16" if device.type == "cuda" else "float32")
        return DTYPES[default if is_fast(default, device) else "float32"]
    if not is_fast(name, device):
        warn_of_slow(name)
    return DTYPES[name]


def is_fast(dtype: str, device: torch.device) -> bool:
    """Whether the device computes in that dtype natively, without emulation; True where torch doesn't say.

    On x86 processors without AVX-512 or AMX a convolution in 16 bit takes 80 times as long as in float32. The answer is
    oneDNN's, which torch asks before every convolution.
    """
    queries = {"bfloat16": "_is_mkldnn_bf16_supported", "float16": "_is_mkldnn_fp16_supported"}
    if dtype not in queries or device.type != "cpu" or platform.machine() not in ("x86_64", "AMD64"):
        return True
    try:
        return bool(getattr(torch.ops.mkldnn, queries[dtype])())
    except (AttributeError, RuntimeError):  # another version of torch, or one without oneDNN
        return True


@functools.cache
def warn_of_slow(dtype: str) -> None:
    """One line on stderr, once a process."""
    print(f"warning: this processor is up to 80 times as slow in {dtype} as in float32; use --dtype float32",
          file=sys.stderr)  # fmt: skip
