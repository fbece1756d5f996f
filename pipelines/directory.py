"""Checks a model's directory before anything in it is loaded: its kind, and that it contains no code.

diffusers 0.24.0 imports any module that `model_index.json` names, from the directory itself if it has one of that name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.reading import read_json

AGAIN = "download the model again"
INDEX = "model_index.json"
CONFIGS = ("config.json", "scheduler_config.json")

# The libraries and classes allowed for each component of a pipeline. `stable_diffusion` is a module of diffusers,
# `unets.class_embedder` one of this repository.
CLIP_TEXT = ("CLIPTextModel", "CLIPTextModelWithProjection")
CLIP_TOKENIZER = ("CLIPTokenizer", "CLIPTokenizerFast")
PARTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "unet": ("diffusers", ("UNet2DConditionModel", "UNet2DModel", "UNetSpatioTemporalConditionModel")),
    "transformer": ("diffusers", ("Transformer2DModel",)),
    "vae": ("diffusers", ("AutoencoderKL", "AutoencoderKLTemporalDecoder", "AutoencoderTiny", "VQModel")),
    "vqvae": ("diffusers", ("VQModel",)),
    "controlnet": ("diffusers", ("ControlNetModel",)),
    "text_encoder": ("transformers", CLIP_TEXT),
    "text_encoder_2": ("transformers", CLIP_TEXT),
    "tokenizer": ("transformers", CLIP_TOKENIZER),
    "tokenizer_2": ("transformers", CLIP_TOKENIZER),
    "image_encoder": ("transformers", ("CLIPVisionModelWithProjection",)),
    "feature_extractor": ("transformers", ("CLIPImageProcessor", "CLIPFeatureExtractor")),
    "safety_checker": ("stable_diffusion", ("StableDiffusionSafetyChecker",)),
    "class_embedder": ("unets.class_embedder", ("ClassEmbedder",)),
}
SCHEDULER = re.compile(r"\w+Scheduler")

# By prefix of a pipeline class's name: the command that runs such a model.
FAMILIES = {
    "StableDiffusionXL": "stable_diffusion_xl.py, or main.py --model_type sdxl",
    "StableVideoDiffusion": "stable_video_diffusion.py, or main.py --model_type svd",
    "StableDiffusion": "stable_diffusion.py, or main.py --model_type sd1.5",
    "LDMClass": "python -m ldm.sample",
    "DDPM": "python -m ddpm.sample",
    "DiT": "python -m dit.sample",
}
SAME_FAMILY = {  # pipelines whose names have another prefix
    "LatentConsistencyModelPipeline": "StableDiffusion",
    "TextToVideoZeroPipeline": "StableDiffusion",
    "DDIMPipeline": "DDPM",
}

# The sizes in a configuration, and their limits: time and memory to build a model grow with them.
LAYERS = ("layers_per_block", "transformer_layers_per_block", "num_hidden_layers", "num_layers")
SIZES = (
    "in_channels", "out_channels", "block_out_channels", "latent_channels", "sample_size", "norm_num_groups",
    "attention_head_dim", "num_attention_heads", "cross_attention_dim", "addition_time_embed_dim",
    "projection_class_embeddings_input_dim", "time_cond_proj_dim", "encoder_hid_dim", "num_frames",
    "num_train_timesteps", "num_embeds_ada_norm", "num_vq_embeddings", "vq_embed_dim", "num_classes", "embedding_dim",
    "hidden_size", "intermediate_size",
    "projection_dim", "patch_size", "image_size", "vocab_size", "max_position_embeddings",
)  # fmt: skip
MOST = dict.fromkeys(LAYERS, 1000) | dict.fromkeys(SIZES, 10**6)


def check_pipeline(folder: Path, cls: Any) -> None:
    """Checks the directory of a pipeline before `cls` loads it.

    Raises:
        ValueError: not a pipeline, a damaged one, one of another kind (with the command that runs it), or one that
            names its own code.
    """
    index = folder / INDEX
    if not index.is_file():
        raise ValueError(f"{folder} is not a pipeline: it has no {INDEX}; give the folder that has one")
    content = read_json(index, dict, remedy=AGAIN)
    _check_kind(folder, content.get("_class_name"), cls)
    for part, value in content.items():
        if isinstance(value, list):
            _check_part(index, part, value)
    for path in [folder / "None.py", *folder.glob("*/*.py")]:  # diffusers would import some of these
        if path.is_file():
            raise ValueError(
                f"{path} is code, which a model does not need; remove it if you trust the rest of {folder}"
            )
    for config in sorted(path for name in CONFIGS for path in folder.glob(f"*/{name}")):
        check_config(config)


def check_config(path: Path) -> dict[str, Any]:
    """The configuration of a model or a scheduler.

    Raises:
        ValueError: it is damaged, or has a size out of range.
    """
    content = read_json(path, dict, remedy=AGAIN)
    check_sizes(path, content)
    return content


def check_sizes(source: str | Path, config: Mapping[str, Any]) -> None:
    """Raises ValueError naming the first size in a configuration that is out of range."""
    for name, value in config.items():
        if name in MOST and not all(1 <= number <= MOST[name] for number in _numbers(value)):
            raise ValueError(f"{source}: {name} is {value}; it must be from 1 to {MOST[name]:,}; {AGAIN}")


def variant_of(folder: Path) -> str | None:
    """The only variant in a pipeline's directory, such as fp16 of `model.fp16.safetensors`; None if there is none."""
    found: set[str] = set()
    for part in (path.parent for path in folder.glob("*/config.json")):
        names = [path.name for path in part.iterdir() if path.suffix in (".safetensors", ".bin")]
        stems = [re.sub(r"-\d+-of-\d+", "", os.path.splitext(name)[0]).partition(".") for name in names]
        if stems and all(variant for _, _, variant in stems):
            found |= {variant for _, _, variant in stems}
    return min(found) if len(found) == 1 else None


def _check_kind(folder: Path, name: Any, cls: Any) -> None:
    if not isinstance(name, str):
        raise ValueError(f"{folder / INDEX} names {name!r} as its class; {AGAIN}")
    check_family(folder, name, cls)


def check_family(source: Path, name: str, cls: Any) -> None:
    """Raises ValueError, with the command to run, if a model of the class or family `name` is not for `cls`."""
    family = _family(name)
    if family is None:
        raise ValueError(f"{source} is a {name}, which nothing here runs; give a {cls.__name__}")
    if family != _family(cls.__name__):
        raise ValueError(f"{source} is a {name}; run it with {FAMILIES[family]}")


def _family(name: str) -> str | None:
    return SAME_FAMILY.get(name) or next((family for family in FAMILIES if name.startswith(family)), None)


def _check_part(index: Path, part: str, value: list[Any]) -> None:
    if value == [None, None]:
        return
    allowed, classes = PARTS.get(part, (None, ()))
    if part == "scheduler" and value[:1] == ["diffusers"] and isinstance(value[-1], str):
        allowed, classes = "diffusers", tuple(SCHEDULER.findall(value[-1]))
    if len(value) != 2 or value[0] != allowed or value[1] not in classes:
        raise ValueError(
            f"{index} was not loaded: it names {value!r} as {part}, which such a model does not have; {AGAIN}"
        )


def _numbers(value: Any) -> list[float]:
    if isinstance(value, list):
        return [number for part in value for number in _numbers(part)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []
