"""What the checks on a GPU run of each model: how long a loop, the paper's branch, the recommended settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

TEXT: dict[str, dict[str, Any]] = {  # the README's, on the shipped text-to-image model
    "safe": {"cache_interval": 6, "refresh_interval": 3, "refresh_branch_id": 3},
    "balanced": {"cache_interval": 12, "refresh_interval": 4, "refresh_branch_id": 5},
    "fast": {"cache_interval": 15, "refresh_interval": 5, "refresh_branch_id": 5},
}
SHALLOW: dict[str, Any] = {"cache_branch_id": 0, "forecast": 1.0, "reuse_guidance": True}
ALL = {name: {**SHALLOW, "reuse_attention": True, **cache} for name, cache in TEXT.items()}
WITHOUT_ATTENTION = {name: {**SHALLOW, **cache} for name, cache in TEXT.items()}  # layers to m have none
LDM = {"two depths": {**SHALLOW, "cache_interval": 10, "refresh_interval": 5, "refresh_branch_id": 5}}
DDPM: dict[str, dict[str, Any]] = {
    "forecast": {"cache_interval": 3, "cache_branch_id": 2, "forecast": 1.0},
    "skipped": {"cache_interval": 4, "cache_branch_id": 2, "skip_interval": 4, "skip_order": 2.5},
}

PLAIN_INTERVAL = 5  # of the paper's cache


@dataclass(frozen=True)
class Settings:
    """Of one model."""

    steps: int  # of a whole loop
    branch: int  # m of the paper's cache
    recommended: dict[str, dict[str, Any]]


SETTINGS: dict[str, Settings] = {
    "sd15": Settings(50, 1, ALL),
    "sd21": Settings(50, 1, ALL),
    "sdxl": Settings(50, 1, WITHOUT_ATTENTION),
    "svd-xt": Settings(10, 1, ALL),  # of 25, or a loop alone would take a minute
    "ldm4": Settings(100, 0, LDM),
    "ddpm-cifar10": Settings(100, 2, DDPM),
}
TINY_STEPS = 8
