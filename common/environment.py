"""What measurements depend on besides the arguments: versions and machine."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import diffusers
import torch
import transformers


def versions(device: torch.device) -> dict[str, str | int | bool]:
    """Versions of Python and of the libraries, the machine, and the torch settings that can change a result."""
    cuda = device.type == "cuda"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "system": platform.platform(),
        "device": f"{device.type}: {torch.cuda.get_device_name(device) if cuda else _processor()}",
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count() or 1,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "tf32": cuda and (torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32),
        "cudnn_benchmark": cuda and torch.backends.cudnn.benchmark,
    }


def _processor() -> str:
    """The CPU's name, where the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), "") or platform.processor() or platform.machine()
