"""A part of a diffusers directory as a model of MLX: weights by their names, in MLX's order of axes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from torch import Tensor

from common.safe_load import check_shapes, read_checkpoint
from pipelines.directory import AGAIN

RENAMED = (  # of attention in an autoencoder, before diffusers 0.18
    (r"\.query\.", ".to_q."),
    (r"\.key\.", ".to_k."),
    (r"\.value\.", ".to_v."),
    (r"\.proj_attn\.", ".to_out.0."),
)


def load_model(
    build: Callable[[dict[str, Any]], nn.Module],
    folder: Path,
    config: dict[str, Any],
    *,
    stem: str = "diffusion_pytorch_model",
    variant: str | None = None,
    prefix: str = "",
    unused: str = r"$^",
    dtype: mx.Dtype = mx.float32,
) -> Any:
    """The model of a part's folder with its weights.

    Args:
        prefix: of the weights' names in the file, which they have not here.
        unused: a pattern of names in the file that the model has no use for.

    Raises:
        ValueError: no safetensors file, a damaged one, a configuration that can't be built, or weights of another.
    """
    path = folder / (f"{stem}.{variant}.safetensors" if variant else f"{stem}.safetensors")
    if not path.is_file():
        raise ValueError(f"there is no {path}; MLX loads weights of one safetensors file, save the model so")
    try:
        model = build(config)
    except (TypeError, ValueError, LookupError, ArithmeticError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"cannot build {folder}: {reason}; {AGAIN}") from error
    # Read by what all weights are read by, since MLX's own reader trusts the file.
    weights = {}
    for name, weight in read_checkpoint(path, AGAIN).items():
        if not re.match(unused, name):
            weights[_renamed(name.removeprefix(prefix))] = as_mlx(name, weight, dtype)
    check_shapes(weights, dict(_shapes(model)), path)
    model.load_weights(list(weights.items()))
    mx.eval(model.parameters())  # MLX computes late, and would hold the file's tensors as well
    return model


def as_mlx(name: str, weight: Tensor, dtype: mx.Dtype) -> mx.array:
    """A weight in MLX's order: a convolution's (O, I, H, W) is (O, H, W, I) there, a projection's (O, I)."""
    array = weight.float().numpy()
    if array.ndim == 4:
        array = array.transpose(0, 2, 3, 1)
        if re.search(r"\.proj_(in|out)\.weight$", name):  # 1 × 1
            array = array[:, 0, 0]
    return mx.array(array).astype(dtype)


def _renamed(name: str) -> str:
    for old, new in RENAMED:
        name = re.sub(old, new, name)
    return name


def _shapes(model: nn.Module) -> list[tuple[str, Any]]:
    return [(name, array.shape) for name, array in tree_flatten(model.parameters())]
