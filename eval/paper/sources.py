"""What a set of images is made from, and its key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

import ddpm.sample
import ldm.sample
import shapes.renders
from common.digests import model_digest
from common.shipped import SHAPES_DDPM, SHAPES_LDM, SHAPES_SD
from unets.cache.config import CacheConfig

from ..generation import text
from ..generation.prompts import NAMES, open_prompts
from .data import Settings

PATHS = ("checkpoint", "model", "prompts", "cache_label")  # settings that are locations: content counts, not its place


def sources_of(settings: Settings) -> dict[str, str]:
    """The identity of each file or folder that images of these settings depend on."""
    match settings:
        case ddpm.sample.Settings():
            return {"checkpoint": identity(settings.checkpoint or SHAPES_DDPM)}
        case ldm.sample.Settings():
            return {"model": identity(settings.model or SHAPES_LDM)}
        case text.Settings():
            return {"model": identity(settings.model or SHAPES_SD), "prompts": _prompts(settings.prompts)}
        case shapes.renders.Settings():
            return {}


def identity(model: str | Path) -> str:
    """The digest of a file or directory, or the commit of a model on the hub."""
    if Path(model).exists():
        return model_digest(Path(model))
    try:
        found = try_to_load_from_cache(str(model), "model_index.json")
    except ValueError:  # a path, not a hub id
        found = None
    return f"{model}@{Path(found).parent.name}" if isinstance(found, str) else "absent"


def _prompts(source: str) -> str:
    """The digest of prompts, whatever file they are in; or a published list's name, whose digest is checked anyway."""
    if source in NAMES and source != "shapes":
        return source
    return open_prompts(source).digest if source in NAMES or Path(source).is_file() else "absent"


def key_of(settings: Settings, sources: Mapping[str, str]) -> str:
    """A key of ten hexadecimal digits for a set's settings and sources.

    Settings at their defaults are left out, so that a new setting does not change existing keys.
    """
    own = {
        field.name: value.to_json() if isinstance(value, CacheConfig) else value
        for field in fields(settings)
        if (value := getattr(settings, field.name)) != field.default and field.name not in PATHS
    }
    content = json.dumps([type(settings).__module__, own, sources], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:10]
