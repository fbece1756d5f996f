"""The settings of each model in the GPU checks: number of steps, the paper's branch, the recommended caches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from common.shipped import RECOMMENDED

SHALLOW: dict[str, Any] = {"cache_branch_id": 0, "forecast": 1.0, "reuse_guidance": True}
WITHOUT_ATTENTION = {  # the layers up to m have none
    name: {key: value for key, value in cache.items() if key != "reuse_attention"}
    for name, cache in RECOMMENDED.items()
}
LDM = {"two depths": {**SHALLOW, "cache_interval": 10, "refresh_interval": 5, "refresh_branch_id": 5}}
DDPM: dict[str, dict[str, Any]] = {
    "forecast": {"cache_interval": 3, "cache_branch_id": 2, "forecast": 1.0},
    "skipped": {"cache_interval": 4, "cache_branch_id": 2, "skip_interval": 4, "skip_order": 2.5},
}

PLAIN_INTERVAL = 5  # of the paper's cache


@dataclass(frozen=True)
class Settings:
    """The settings of one model."""

    steps: int  # of a full loop
    branch: int  # m of the paper's cache
    recommended: dict[str, dict[str, Any]]


SETTINGS: dict[str, Settings] = {
    "sd15": Settings(50, 1, RECOMMENDED),
    "sd21": Settings(50, 1, RECOMMENDED),
    "sdxl": Settings(50, 1, WITHOUT_ATTENTION),
    "svd-xt": Settings(10, 1, RECOMMENDED),  # instead of 25, with which one loop would take a minute
    "ldm4": Settings(100, 0, LDM),
    "ddpm-cifar10": Settings(100, 2, DDPM),
}
TINY_STEPS = 8
