"""Loads single-file checkpoints, as Stable Diffusion's are often shared, through diffusers' conversion."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.convert_from_ckpt import download_from_original_stable_diffusion_ckpt
from huggingface_hub.constants import HF_HUB_OFFLINE
from torch import Tensor, nn

from common.command_line import is_out_of_memory
from common.safe_load import is_state_dict, read_checkpoint

from .directory import check_family

SUFFIXES = (".safetensors", ".ckpt")
INPUT = "model.diffusion_model.input_blocks.0.0.weight"  # of the U-Net; its channels identify inpainting models
FAMILIES = {  # by a prefix of weight names that only this family has
    "conditioner.embedders.0.open_clip.": "StableVideoDiffusion",
    "conditioner.embedders.": "StableDiffusionXL",
    "cond_stage_model.": "StableDiffusion",
}


def load_single_file(cls: Any, path: Path, *, dtype: torch.dtype, **components: Any) -> Any:
    """A pipeline of `cls` from a .safetensors or .ckpt file, on the CPU, without a safety checker.

    Its configuration is `NAME.yaml` beside it if that exists, else it is downloaded, as are the text encoder's and the
    tokenizer's unless they are in the hub's cache. No code from the file is run.

    Raises:
        ValueError: not such a checkpoint, one of another family, or no configuration available.
    """
    content = read_checkpoint(path)
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not is_state_dict(state) or INPUT not in state:
        raise ValueError(f"{path} is not a Stable Diffusion checkpoint; give one, a diffusers directory or a hub id")
    check_family(path, _family(state), cls)
    config = path.with_suffix(".yaml")
    try:
        pipe = download_from_original_stable_diffusion_ckpt(
            state,
            original_config_file=str(config) if config.is_file() else None,
            pipeline_class=cls,
            num_in_channels=state[INPUT].shape[1],
            load_safety_checker=False,
            local_files_only=HF_HUB_OFFLINE,
            controlnet=components.get("controlnet"),
        )
    except Exception as error:  # no package or network, a configuration of another layout
        if is_out_of_memory(error):
            raise
        raise ValueError(
            f"cannot load {path}: {' '.join(str(error).split())[:200]}; its configuration is read from {config.name} "
            "beside it and from the hub's cache, or downloaded: connect once, or give --model a diffusers directory"
        ) from error
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.eval()
    return pipe.to(dtype)


def _family(state: Mapping[str, Tensor]) -> str:
    found = (family for start, family in FAMILIES.items() if any(name.startswith(start) for name in state))
    return next(found, "of an unknown kind")
