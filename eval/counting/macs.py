"""Multiply-accumulates of one call of a U-Net, counted without weights on the meta device."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, ClassVar, NamedTuple

import diffusers
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
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


class Exceptions(NamedTuple):
    """Where the paper counted code other than diffusers', by layer name patterns such as "*.norm1".

    uncounted: layers of a class that its counter did not know; they count as 0 in the paper's convention.
    as_convolutions: linear layers that are 1 × 1 convolutions there, whose biases are counted at every position.
    """

    uncounted: tuple[str, ...] = ()
    as_convolutions: tuple[str, ...] = ()


NONE = Exceptions()
_COUNTED: dict[str, tuple[Macs, Macs]] = {}  # by the configuration and the shapes


class _ProductsAlone(TorchFunctionMode):
    """Leaves out what neither convention counts: on the meta device it takes most of the time.

    Pointwise operations keep the shape; of attention and linear layers the matrix products remain.
    """

    POINTWISE: ClassVar = {F.group_norm, F.layer_norm, F.silu, F.gelu, F.dropout}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.POINTWISE:
            return args[0]
        if func is F.linear:
            return (args[0].flatten(0, -2) @ args[1].mT).view(*args[0].shape[:-1], -1)
        if func is F.scaled_dot_product_attention:
            query, key, value = args[:3]
            return query @ key.mT @ value
        return func(*args, **(kwargs or {}))


def count(unet: nn.Module, inputs: dict[str, Any], exceptions: Exceptions = NONE) -> Macs:
    """Counts one call of `unet(**inputs)`, both on the meta device: torch's counter misses the CPU's own attention."""
    return count_modules(unet, inputs, exceptions)[""]


def count_call(unet: nn.Module, inputs: dict[str, Any], exceptions: Exceptions = NONE) -> tuple[Any, Macs]:
    """As `count`, returning the output of `unet(**inputs)` too."""
    output, macs = _counted_call(unet, inputs, exceptions)
    return output, macs[""]


def count_modules(unet: nn.Module, inputs: dict[str, Any], exceptions: Exceptions = NONE) -> dict[str, Macs]:
    """`count` for every module by its name, submodules included; "" is the whole U-Net."""
    return _counted_call(unet, inputs, exceptions)[1]


def _counted_call(unet: nn.Module, inputs: dict[str, Any], exceptions: Exceptions) -> tuple[Any, dict[str, Macs]]:
    """The output of `unet(**inputs)`, and the MACs of every module."""
    flops = FlopCounterMode(display=False)
    with torch.no_grad(), _paper_convention(unet, exceptions) as paper, flops, _ProductsAlone():
        output = unet(**inputs)
    within: Counter[str] = Counter()
    for layer, macs_of_layer in paper.items():
        parts = layer.split(".")
        for depth in range(len(parts) + 1):
            within[".".join(parts[:depth])] += macs_of_layer
    products = flops.get_flop_counts()
    macs = {}
    for name, _ in unet.named_modules():
        key = f"{type(unet).__name__}.{name}" if name else "Global"  # the flop counter's
        macs[name] = Macs(within[name], sum(products.get(key, {}).values()) // 2)
    return output, macs


def count_retrieve(fork: Any, inputs: dict[str, Any], cache_branch_id: int, exceptions: Exceptions = NONE) -> Macs:
    """A retrieve step at the branch, with the feature of a full step."""
    with torch.no_grad(), _ProductsAlone():
        output = fork(**inputs, cache_branch_id=cache_branch_id)
    retrieve = {"cache_branch_id": cache_branch_id, "cached_feature": output.cached_feature}
    return count(fork, {**inputs, **retrieve}, exceptions)


def count_steps(
    unet: Any,
    inputs: dict[str, Any],
    cache_branch_id: int,
    exceptions: Exceptions = NONE,
    *,
    keep_attention: bool = False,
) -> tuple[Macs, Macs]:
    """A full and a retrieve step at the branch, for the configuration of `unet` and the shapes of `inputs`.

    With `keep_attention` the retrieve step reuses what attention added in the full one. Counted once in a process: many
    runs compare the same model.
    """
    shapes = {k: v.to("meta") if torch.is_tensor(v) else v for k, v in inputs.items()}
    if "added_cond_kwargs" in inputs:
        shapes["added_cond_kwargs"] = {k: v.to("meta") for k, v in inputs["added_cond_kwargs"].items()}
    # The text of a tensor on the meta device is its size and dtype.
    key = repr((fork_class(unet), unet.config, unet.dtype, shapes, cache_branch_id, exceptions, keep_attention))
    if key not in _COUNTED:
        shapes["cache_branch_id"] = cache_branch_id
        _COUNTED[key] = _count_steps(unet, shapes, exceptions, {"keep_attention": True} if keep_attention else {})
    return _COUNTED[key]


def _count_steps(unet: Any, shapes: dict[str, Any], exceptions: Exceptions, keep: dict[str, bool]) -> tuple[Macs, Macs]:
    with torch.device("meta"):
        model = fork_class(unet).from_config(unet.config).to("meta", unet.dtype).eval()
        output, full = _counted_call(model, {**shapes, **keep}, exceptions)
        cached = {"cached_feature": output.cached_feature}
        if keep:
            cached["cached_attention"] = output.attention
        return full[""], count(model, {**shapes, **cached}, exceptions)


def count_branches(fork: Any, inputs: dict[str, Any], exceptions: Exceptions = NONE) -> list[Macs]:
    """Figure 4: MACs of down layer d_k and up layer u_k together, for every skip branch k."""
    return branches_of(fork, count_modules(fork, inputs, exceptions))


def branches_of(fork: Any, macs: dict[str, Macs]) -> list[Macs]:
    """The same, from what `count_modules` counted."""
    names = {module: name for name, module in fork.named_modules()}
    down = [(fork.conv_in,), *fork.down_layers]
    branches = []
    for d, u in zip(down, fork.up_layers, strict=True):
        layers = [macs[names[m]] for m in (*d, u.resnet, u.attention, u.upsampler) if m is not None]
        branches.append(Macs(*(sum(values) for values in zip(*layers, strict=True))))
    return branches


def average(full: float, retrieve: float, steps: int, interval: int) -> float:
    """Average MACs per step, if every `interval`-th of `steps` steps is full: ceil(T/N) of them."""
    num_full = math.ceil(steps / interval)
    return (num_full * full + (steps - num_full) * retrieve) / steps


def unet_inputs(
    unet: Any, height: int, width: int, *, batch: int = 1, tokens: int = 77, frames: int = 25
) -> dict[str, Any]:
    """Random inputs for a call of `unet` on latents of (batch, C, height, width), on its device and in its dtype.

    A video U-Net's are (batch, frames, C, height, width), with one token, the image's. An unconditional one has none.
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
    }
    if isinstance(unet, diffusers.UNet2DModel):
        if config.class_embed_type is not None or config.num_class_embeds is not None:
            inputs["class_labels"] = torch.zeros(batch, dtype=torch.long, device=unet.device)
        return inputs
    inputs["encoder_hidden_states"] = torch.randn(batch, tokens, config.cross_attention_dim, **like)
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
def _paper_convention(unet: nn.Module, exceptions: Exceptions) -> Iterator[dict[str, int]]:
    """Collects, while open, the paper's count of every convolution, linear and normalisation layer, by its name."""
    counts: dict[str, int] = {}

    def matches(name: str, patterns: tuple[str, ...]) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    def convolution(layer: Any, output: Tensor, name: str) -> int:
        kernel = layer.weight[0].numel()  # k * k * C_in / groups, for a video's convolutions over time k * C_in
        return output.numel() * (kernel + (layer.bias is not None))

    def linear(layer: Any, output: Tensor, name: str) -> int:
        biases = output.numel() if matches(name, exceptions.as_convolutions) else layer.out_features
        return output.numel() * layer.in_features + (biases if layer.bias is not None else 0)

    def normalisation(_: Any, output: Tensor, name: str) -> int:
        return 2 * output.numel()

    kinds: dict[type[nn.Module], Any] = {
        nn.Conv2d: convolution,
        nn.Conv3d: convolution,
        nn.Linear: linear,
        nn.GroupNorm: normalisation,
        nn.LayerNorm: normalisation,
    }

    def hook(name: str, kind: type[nn.Module]) -> Any:
        def add(layer: nn.Module, _: Any, output: Tensor) -> None:
            counts[name] = counts.get(name, 0) + kinds[kind](layer, output, name)

        return add

    hooks = [
        module.register_forward_hook(hook(name, kind))
        for name, module in unet.named_modules()
        for kind in kinds
        if isinstance(module, kind) and not matches(name, exceptions.uncounted)
    ]
    try:
        yield counts
    finally:
        for handle in hooks:
            handle.remove()
