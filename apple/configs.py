"""Configurations of diffusers and transformers, of which only some options are written out here."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any

from pipelines.directory import check_config


def read_config(path: Path, cls: Any, options: Sequence[str], **changes: Any) -> dict[str, Any]:
    """A configuration with the defaults of the class that it is of in diffusers or transformers.

    Args:
        options: those that the model in MLX writes out.
        changes: what takes the place of what the file says.

    Raises:
        ValueError: a damaged file, or another option that has not its default, by name.
    """
    given = check_config(path) | changes
    parameters = signature(cls.__init__).parameters.values()
    config = {p.name: given.get(p.name, p.default) for p in parameters if p.default is not p.empty}
    for p in parameters:
        if p.name in config and p.name not in options and config[p.name] != p.default:
            raise ValueError(f"{path}: {p.name} {config[p.name]!r} is not supported in MLX; use stable_diffusion.py")
    return config
