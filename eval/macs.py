"""Multiply-accumulates of a U-Net's full and retrieve steps, counted without weights on the meta device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import diffusers
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from unets import fork_class


class Macs(NamedTuple):
    """Multiply-accumulates of one call, in two conventions.

    paper: what the paper's tables count. Convolutions and linear layers with their biases, two per element of a
        normalisation; no matrix products of attention, no activations.
    with_attention: convolutions and all matrix products, attention's included; no biases, no normalisations.
    """

    paper: int
    with_attention: int


def count(unet: nn.Module, inputs: dict[str, Any]) -> Macs:
    """Counts one call of `unet(**inputs)`, on whatever device they are."""
    with torch.no_grad(), _paper_convention(unet) as paper, FlopCounterMode(display=False) as flops:
        unet(**inputs)
    return Macs(sum(paper), flops.get_total_flops() // 2)


def count_steps(unet: Any, inputs: dict[str, Any], cache_branch_id: int) -> tuple[Macs, Macs]:
    """A full and a retrieve step at the branch, for the configuration of `unet` and the shapes of `inputs`."""
    with torch.device("meta"):
        model = fork_class(unet).from_config(unet.config).to("meta", unet.dtype).eval()
        shapes = {k: v.to("meta") if torch.is_tensor(v) else v for k, v in inputs.items()}
        if "added_cond_kwargs" in inputs:
            shapes["added_cond_kwargs"] = {k: v.to("meta") for k, v in inputs["added_cond_kwargs"].items()}
        full = count(model, shapes)
        with torch.no_grad():
            kept = model(**shapes, cache_branch_id=cache_branch_id).cached_feature
        return full, count(model, {**shapes, "cache_branch_id": cache_branch_id, "cached_feature": kept})


def unet_inputs(
    unet: Any, height: int, width: int, *, batch: int = 1, tokens: int = 77, frames: int = 25
) -> dict[str, Any]:
    """Random inputs for a call of `unet` on latents of (batch, C, height, width), on its device and in its dtype.

    A video U-Net's are (batch, frames, C, height, width), with one token, the image's.
    """
    config = unet.config
    like: dict[str, Any] = {"device": unet.device, "dtype": unet.dtype}
    if isinstance(unet, diffusers.UNetSpatioTemporalConditionModel):
        return {
            "sample": torch.randn(batch, frames, config.in_channels, height, width, **like),
            "timestep": torch.tensor(500, device=unet.device),
            "encoder_hidden_states": torch.randn(batch, 1, config.cross_attention_dim, **like),
            "added_time_ids": torch.tensor([[6, 127, 0.02]] * batch, **like),
        }
    inputs: dict[str, Any] = {
        "sample": torch.randn(batch, config.in_channels, height, width, **like),
        "timestep": torch.tensor(500, device=unet.device),
        "encoder_hidden_states": torch.randn(batch, tokens, config.cross_attention_dim, **like),
    }
    if config.addition_embed_type == "text_time":
        # Pooled text, and 6 sizes, or 5 where an aesthetic score stands for two of them (the refiner).
        width, size_width = config.projection_class_embeddings_input_dim, config.addition_time_embed_dim
        sizes = 5 if width - 5 * size_width == 1280 else 6
        inputs["added_cond_kwargs"] = {
            "text_embeds": torch.randn(batch, width - sizes * size_width, **like),
            "time_ids": torch.full((batch, sizes), 1024.0, **like),
        }
    return inputs


@contextmanager
def _paper_convention(unet: nn.Module) -> Iterator[list[int]]:
    """Collects, while open, the paper's count of every convolution, linear and normalisation layer that is called."""
    counts: list[int] = []

    def convolution(layer: nn.Conv2d | nn.Conv3d, _: Any, output: Tensor) -> None:
        kernel = layer.weight[0].numel()  # k * k * C_in / groups, for a video's convolutions over time k * C_in
        counts.append(output.numel() * (kernel + (layer.bias is not None)))

    def linear(layer: nn.Linear, _: Any, output: Tensor) -> None:
        counts.append(output.numel() * layer.in_features + (layer.out_features if layer.bias is not None else 0))

    def normalisation(_: nn.Module, __: Any, output: Tensor) -> None:
        counts.append(2 * output.numel())

    kinds: dict[type, Any] = {
        nn.Conv2d: convolution,
        nn.Conv3d: convolution,
        nn.Linear: linear,
        nn.GroupNorm: normalisation,
        nn.LayerNorm: normalisation,
    }
    hooks = [
        module.register_forward_hook(hook)
        for module in unet.modules()
        for kind, hook in kinds.items()
        if isinstance(module, kind)
    ]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()
