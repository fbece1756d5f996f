"""What figures depend on besides the arguments: versions and machine."""

from __future__ import annotations

import os
import platform

import diffusers
import torch
import transformers


def versions(device: torch.device) -> dict[str, str | int]:
    """Versions of Python and of the libraries, device and CPU."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "system": platform.platform(),
        "device": f"{device.type}: {name}",
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count() or 1,
    }
