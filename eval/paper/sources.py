"""What a set of images is made from, as digests: the key under which it and its scores are filed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

import ddpm.sample
import ldm.sample
from common.digests import path_digest
from common.shipped import SHAPES_DDPM, SHAPES_LDM, SHAPES_SD

from ..generation import text
from ..generation.prompts import open_prompts
from .data import Settings


def sources_of(settings: Settings) -> dict[str, str]:
    """Of each file or folder that images of these settings depend on, its digest. "absent" where it is not there."""
    match settings:
        case ddpm.sample.Settings():
            return {"checkpoint": weights_identity(settings.checkpoint or SHAPES_DDPM)}
        case ldm.sample.Settings():
            return {"model": weights_identity(settings.model or SHAPES_LDM)}
        case text.Settings():
            return {
                "model": weights_identity(settings.model or SHAPES_SD),
                "prompts": prompts_identity(settings.prompts),
            }


def weights_identity(model: str | Path) -> str:
    """The digest of a file or directory, or the commit of a model of the hub."""
    if Path(model).exists():
        return path_digest(Path(model))
    found = try_to_load_from_cache(str(model), "model_index.json") if "/" in str(model) else None
    if not isinstance(found, str):
        return "absent"
    return f"{model}@{Path(found).parent.name}"  # files of a commit never change


def prompts_identity(source: str) -> str:
    """The digest of the prompts themselves, whatever file they are in."""
    try:
        return open_prompts(source, quiet=True, download=False).digest
    except ValueError:
        return "absent"


def key_of(settings: Settings, sources: dict[str, str]) -> str:
    """Ten hexadecimal digits that tell apart what is made from anything else."""
    content = json.dumps([type(settings).__module__, asdict(settings), sources], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:10]
