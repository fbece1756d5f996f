"""Weights of DDPM's U-Net: from ermongroup/ddim's names to those of diffusers, and back.

Latent diffusion's first stage has the same names, by way of taming-transformers.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.command_line import is_out_of_memory
from common.safe_load import build, check_shapes, is_state_dict, raise_on_mismatch, read_checkpoint, shapes_of
from pipelines.directory import check_config
from unets.unet_2d import UNet2DModel

from .configs import CONFIGS, Config

# All of these, in turn, turn a diffusers name into the original's.
RENAMES = [
    (r"^time_embedding\.linear_1\.", "temb.dense.0."),
    (r"^time_embedding\.linear_2\.", "temb.dense.1."),
    (r"\bconv_norm_out\b", "norm_out"),
    (r"\bmid_block\.resnets\.0\.", "mid.block_1."),
    (r"\bmid_block\.resnets\.1\.", "mid.block_2."),
    (r"\bmid_block\.attentions\.0\.", "mid.attn_1."),
    (r"\b(down|up)_blocks\.", r"\1."),
    (r"\.resnets\.", ".block."),
    (r"\.attentions\.", ".attn."),
    (r"\.(down|up)samplers\.0\.", r".\1sample."),
    (r"\.time_emb_proj\.", ".temb_proj."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.group_norm\.", ".norm."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".proj_out."),
]


def original_name(name: str, levels: int) -> str:
    """The original's name of a weight, from its name in diffusers. There, `up.0` is the highest resolution."""
    name = re.sub(r"\bup_blocks\.(\d+)", lambda match: f"up_blocks.{levels - 1 - int(match[1])}", name)
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def original_shape(name: str, shape: torch.Size) -> torch.Size:
    """The original's shape of a weight, by its name in diffusers: attention's linear layers are 1 × 1 convolutions."""
    return torch.Size([*shape, 1, 1]) if ".attentions." in name and len(shape) == 2 else shape


def to_diffusers(
    state: Mapping[str, Tensor], unet: Mapping[str, Any], source: str | Path = "the state dict"
) -> dict[str, Tensor]:
    """The same weights under the names of `diffusers.UNet2DModel(**unet)`.

    Raises:
        ValueError: naming the first three weights of `source` that are missing, unexpected, or of another shape.
    """
    shapes = shapes_of(UNet2DModel, unet)
    names = {name: original_name(name, len(unet["block_out_channels"])) for name in shapes}
    check_shapes(state, {names[name]: original_shape(name, shape) for name, shape in shapes.items()}, source)
    return {name: state[names[name]].reshape(shape) for name, shape in shapes.items()}


def from_diffusers(state: Mapping[str, Tensor], unet: Mapping[str, Any]) -> dict[str, Tensor]:
    """The inverse of `to_diffusers`."""
    levels = len(unet["block_out_channels"])
    return {original_name(name, levels): w.reshape(original_shape(name, w.shape)) for name, w in state.items()}


def load_unet(path: str | Path, config: Config | None = None, dtype: torch.dtype = torch.float32) -> UNet2DModel:
    """The U-Net of a published or self-trained checkpoint, on the CPU.

    Args:
        path: a state dict with ermongroup/ddim's names, a checkpoint of its training loop, or a diffusers directory
            (a UNet's, or a pipeline's with unet/ in it).
        config: the file's configuration. A directory has its own, which is only compared with this one.

    Raises:
        ValueError: no such file, not a checkpoint, another architecture, or a published file name with other content.
    """
    path = Path(path)
    if path.is_dir():
        return _load_directory(path / "unet" if (path / "unet").is_dir() else path, config, dtype)
    if config is None:
        raise ValueError(f"{path} does not say its layout; name the configuration: {', '.join(CONFIGS)}")
    published = next((c for c in CONFIGS.values() if path.stem == c.name or path.as_posix().endswith(c.file)), None)
    if published is not None and path.is_file():
        _check_md5(path, published)
    state = _state_dict(read_checkpoint(path, remedy=f"download it again from {config.url}"), path)
    return build(UNet2DModel, config.unet, to_diffusers(state, config.unet, path), dtype)


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """The weights in a checkpoint of DDIM's training loop: [model, optimizer, epoch, step, moving average if any].

    The moving average is what DDIM samples with.
    """
    if isinstance(content, list | tuple) and content:
        content = content[-1] if is_state_dict(content[-1]) else content[0]
    if not is_state_dict(content):
        raise ValueError(f"{path} holds no state dict; give a model.state_dict() saved with ermongroup/ddim's names")
    if all(name.startswith("module.") for name in content):  # written by DataParallel
        content = {name.removeprefix("module."): weight for name, weight in content.items()}
    return content


def _check_md5(path: Path, published: Config) -> None:
    with path.open("rb") as file:
        md5 = hashlib.file_digest(file, "md5").hexdigest()
    if md5 != published.md5:
        raise ValueError(
            f"{path} has the name of {published.name} but other content: md5 {md5} instead of {published.md5}; "
            f"download it again from {published.url}, or rename it if it is another model"
        )


def _load_directory(path: Path, config: Config | None, dtype: torch.dtype) -> UNet2DModel:
    if not (path / "config.json").is_file():
        raise ValueError(f"{path} has no config.json; give a diffusers UNet or pipeline directory")
    if (class_name := check_config(path / "config.json").get("_class_name")) != "UNet2DModel":
        raise ValueError(
            f"{path} holds a {class_name}, not a UNet2DModel; give the directory of an unconditional model"
        )
    try:
        unet, info = UNet2DModel.from_pretrained(
            str(path), torch_dtype=dtype, local_files_only=True, low_cpu_mem_usage=False,
            ignore_mismatched_sizes=True, output_loading_info=True,
        )  # fmt: skip
    except Exception as error:  # readers of damaged files raise almost anything
        if is_out_of_memory(error):
            raise
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"cannot load {path}: {reason}; is the directory complete?") from error
    differences = [f"{name} is missing" for name in info["missing_keys"]]
    differences += [f"{name} is not expected" for name in info["unexpected_keys"]]
    differences += [f"{n} is {tuple(a)} instead of {tuple(b)}" for n, a, b in info["mismatched_keys"]]
    for key, value in config.unet.items() if config else ():
        found = unet.config[key]
        if (tuple(found) if isinstance(found, list) else found) != value:
            differences.append(f"{key} is {found} instead of {value}")
    raise_on_mismatch(differences, path)
    return unet
