"""Loads a pipeline from a model's name or path, with one clear line for each error."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.utils.logging import disable_progress_bar
from huggingface_hub.utils import RepositoryNotFoundError

from common.command_line import is_out_of_memory
from common.words import counted
from unets.compiled import compile_forward

from .directory import check_pipeline, variant_of
from .fused_steps import can_be_fused, fuse_steps, weighted_sum
from .single_file import SUFFIXES, load_single_file

MIRRORS = {  # removed from the hub in 2024: where the same files are now
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "runwayml/stable-diffusion-inpainting": "stable-diffusion-v1-5/stable-diffusion-inpainting",
}


# By name on the command line: class, and changes to the model's own configuration.
#
# DPM++ and UniPC space timesteps evenly from the last one to 0, whatever spacing the model has for its own sampler. The
# last step of DPM++ is first-order, without `euler_at_final` only below 15 steps. Distance in dB, medians of 32 images
# of the shipped model (whose own spacing is "leading"), with these settings and with the model's own:
#
#   steps           10           15           20
#   to PLMS, 50     39.5  37.5   42.6  36.9   44.9  39.3   DPM++
#                   40.0  37.1   42.8  40.7   45.3  42.9   UniPC
#   to a fine       39.9  36.7   43.1  36.1   45.4  38.4   DPM++
#   solution        40.3  36.3   43.5  39.4   45.6  41.0   UniPC
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "plms": ("PNDMScheduler", {"skip_prk_steps": True}),
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "dpm++": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver++", "timestep_spacing": "linspace", "euler_at_final": True},
    ),
    "dpm++-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {"timestep_spacing": "linspace"}),
    "lcm": ("LCMScheduler", {}),
}


def new_scheduler(name: str, config: dict[str, Any]) -> Any:
    """The scheduler of that name, with the noise schedule of a model's own one.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    if name not in SCHEDULERS:
        raise ValueError(f"unknown scheduler {name!r}; choose from {', '.join(SCHEDULERS)}")
    class_name, changes = SCHEDULERS[name]
    return getattr(diffusers, class_name).from_config(config, **changes)


def load_pipeline(
    cls: Any,
    model: str | Path,
    *,
    dtype: torch.dtype,
    scheduler: str | None = None,
    quiet: bool = False,
    variant: str | None = None,
    **components: Any,
) -> Any:
    """A pipeline of `cls` from a diffusers directory, a hub id or a single-file checkpoint, on the CPU.

    Args:
        components: replacements for the model's own components.
        variant: of the weights, such as fp16; the default for a directory with only one variant is that one.

    Raises:
        ValueError: no such directory, not a pipeline, or not available from the hub; the message names the remedy.
    """
    name = str(model)
    if name in MIRRORS and not Path(name).is_dir():
        print(f"{name} is no longer on the hub; using its mirror {MIRRORS[name]}", file=sys.stderr)
        name = MIRRORS[name]
    check_name(name)
    if quiet:
        disable_progress_bar()
    if Path(name).is_file():
        pipe = load_single_file(cls, Path(name), dtype=dtype, **components)
    else:
        folder = Path(name) if Path(name).is_dir() else _download(cls, name, variant, components)
        pipe = _load_directory(cls, folder, dtype, variant, components)
    if scheduler is not None:
        pipe.scheduler = new_scheduler(scheduler, pipe.scheduler.config)
    return pipe


def _load_directory(cls: Any, folder: Path, dtype: torch.dtype, variant: str | None, components: dict[str, Any]) -> Any:
    check_pipeline(folder, cls)
    try:
        return cls.from_pretrained(
            folder, torch_dtype=dtype, variant=variant or variant_of(folder), local_files_only=True, **components
        )
    except Exception as error:  # readers of damaged files raise almost anything
        if is_out_of_memory(error):
            raise
        raise ValueError(f"cannot load {folder}: {_first_line(error)}; is the directory complete?") from error


def _download(cls: Any, name: str, variant: str | None, components: dict[str, Any]) -> Path:
    """The folder of the hub's files, downloaded if needed, or from the cache if the hub can't be reached."""
    try:
        return Path(cls.download(name, variant=variant, **components))
    except OSError as error:
        if isinstance(error.__cause__, RepositoryNotFoundError):
            raise ValueError(
                f"the hub has no {name}, or it is private; check the name or give --model a path"
            ) from None
    except ValueError as error:  # a repository with its own code, or no such variant
        raise ValueError(f"cannot load {name}: {_first_line(error)}; give another --model") from None
    try:
        return Path(cls.download(name, variant=variant, local_files_only=True, **components))
    except OSError:
        raise ValueError(
            f"cannot get {name} from the hub and it is not in the cache (~/.cache/huggingface, or where HF_HOME "
            "points); connect once, or give --model the path of a downloaded pipeline"
        ) from None


def check_name(name: str) -> None:
    """Raises ValueError if `name` looks like a path but is neither a directory nor a checkpoint."""
    path = Path(name)
    if path.is_file() and path.suffix not in SUFFIXES:
        raise ValueError(
            f"{name} is a file; --model takes a diffusers directory, a hub id, or a checkpoint ({', '.join(SUFFIXES)})"
        )
    if not path.exists() and (name.count("/") != 1 or name.startswith((".", "/", "~"))):
        raise ValueError(f"there is no directory {name}; --model takes a diffusers directory or a hub id (owner/name)")


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def place_pipeline(pipe: Any, device: torch.device, *, channels_last: bool, compiled: bool, cpu_offload: bool) -> None:
    """Moves the pipeline to the device, with the given memory format, compilation and offloading."""
    if channels_last:
        for weight in (*pipe.unet.parameters(), *pipe.vae.parameters()):
            if weight.dim() == 4:  # temporal convolutions have five
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    if compiled:
        options = {"mode": "reduce-overhead"} if device.type == "cuda" and not cpu_offload else {}  # CUDA graphs
        compile_forward(pipe.unet, **options)
        if can_be_fused(pipe.scheduler):
            # Without CUDA graphs, which would overwrite latents that later steps use.
            fuse_steps(pipe.scheduler, torch.compile(weighted_sum, fullgraph=True))
    if cpu_offload:
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.to(device)


def build_pipeline(cls: Any, parts: dict[str, Any], *, dtype: torch.dtype, scheduler: str | None = None) -> Any:
    """A pipeline of `cls` from its components, on the CPU."""
    pipe = cls(**parts)
    if scheduler is not None:
        pipe.scheduler = new_scheduler(scheduler, pipe.scheduler.config)
    return pipe.to(dtype)


def check_steps(pipe: Any, steps: int, name: str = "--steps") -> None:
    """Raises ValueError if the model was trained on too few steps; `name` is the option in the message."""
    trained = pipe.scheduler.config.num_train_timesteps
    if steps >= trained:
        raise ValueError(
            f"{name} is {steps}; it must be below the {counted(trained, 'step')} that the model was trained on"
        )
