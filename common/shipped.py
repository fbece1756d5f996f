"""The small models that ship with this repository: their paths and recommended settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ASSETS = Path(__file__).parent.parent / "assets"
SHAPES_SD = ASSETS / "shapes-sd"  # text to image
SHAPES_LDM = ASSETS / "shapes-ldm"  # class to image
SHAPES_DDPM = ASSETS / "shapes-ddpm"  # unconditional
SHAPES_DIT = ASSETS / "shapes-dit"  # class to image, with a transformer
SHAPES_CLIP = ASSETS / "shapes-clip"  # the image-text encoder that scores their pictures
EXAMPLE_IMAGE = ASSETS / "example.png"  # default input of the video scripts

PROMPTS = {  # by whether the model is the shipped one
    True: [
        "a large red circle above a small blue square on a green background",
        "a small yellow triangle left of a large purple ring on a striped gray background",
        "a large white cross right of a small black circle on a checkered brown background",
        "a small orange square below a large green triangle on a beige background",
    ],
    False: ["a photo of an astronaut on a moon"],
}
GUIDANCE = {True: 2.5, False: 7.5}  # 7.5 is too much for such a small model: PLMS with few steps falls apart

RECOMMENDED: dict[str, dict[str, Any]] = {  # caches for the text-to-image model; results in docs/extensions.md
    name: {
        "cache_interval": interval,
        "cache_branch_id": 0,
        "refresh_interval": refresh,
        "refresh_branch_id": deeper,
        "forecast": 1.0,
        "forecast_order": order,
        "reuse_attention": True,
        "reuse_guidance": True,
    }
    for name, interval, refresh, deeper, order in (
        ("safe", 6, 3, 3, 2.0),
        ("balanced", 12, 4, 5, 2.0),
        ("fast", 15, 5, 5, 1.5),
        ("fastest", 18, 6, 5, 1.7),
    )
}
