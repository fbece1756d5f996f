"""The cache's view of a forked U-Net: M pairs of a down layer, which makes a skip, and an up layer, which uses it."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

from torch import Tensor, nn

from .cache.attention import ShallowAttention


class DownLayer(NamedTuple):
    """d_k for k ≥ 1: a resnet, with or without attention, or a downsampler."""

    resnet: nn.Module | None
    attention: nn.Module | None
    downsampler: nn.Module | None
    motion: nn.Module | None = None  # AnimateDiff's: attention over the frames


class UpLayer(NamedTuple):
    """u_k: a resnet over main branch and skip, attention if any, and the upsampler if it is its block's last layer."""

    block: nn.Module
    resnet: nn.Module
    attention: nn.Module | None
    upsampler: nn.Module | None
    motion: nn.Module | None = None


def down_layers(down_blocks: Any) -> list[DownLayer]:
    """d_1 … d_{M-1} of a diffusers U-Net, or of a ControlNet: views of its blocks, not registered as modules."""
    layers = []
    for block in down_blocks:
        layers += [DownLayer(r, a, None, m) for r, a, m in zip(block.resnets, *_attentions(block), strict=True)]
        layers += [DownLayer(None, None, downsampler) for downsampler in block.downsamplers or ()]
    return layers


def adapted_layers(down_blocks: Any) -> dict[int, int]:
    """The down layers d_k to whose output a T2I-Adapter's features are added: k, and the index of its block.

    A block with attention adds them before its downsampler, one without attention after it.
    """
    found, k = {}, 0
    for i, block in enumerate(down_blocks):
        k += len(block.resnets)
        downsampled = k + len(block.downsamplers or ())
        found[k if hasattr(block, "attentions") else downsampled] = i
        k = downsampled
    return found


def up_layers(up_blocks: Any) -> list[UpLayer]:
    """u_0 … u_{M-1} of a diffusers U-Net, likewise; the last one to run comes first."""
    layers = []
    for block in up_blocks:
        attentions, motions = _attentions(block)
        upsamplers = [None] * (len(block.resnets) - 1) + list(block.upsamplers or [None])
        parts = zip(block.resnets, attentions, upsamplers, motions, strict=True)
        layers += [UpLayer(block, *layer) for layer in parts]
    return layers[::-1]


def _attentions(block: Any) -> tuple[Any, Any]:
    """The attention and the motion module of each resnet of a block; None for those without."""
    none = [None] * len(block.resnets)
    return getattr(block, "attentions", none), getattr(block, "motion_modules", none)


def share_weights_as(cls: type, model: Any) -> Any:
    """`model` as a `cls` that shares its modules and weights; the model itself if it is one already.

    The model's hooks are on the copy too; hooks added to either one later are not on the other.

    Raises:
        ValueError: if the model is offloaded by accelerate, or compiled.
    """
    if isinstance(model, cls):
        return model
    if hasattr(model, "_hf_hook"):
        raise ValueError(f"the {type(model).__name__} is offloaded; build the pipeline first, then offload it")
    if "forward" in vars(model):
        raise ValueError(
            f"the forward of this {type(model).__name__} was replaced, for example by compiling it; do that afterwards"
        )
    return shallow_clone(model, cls)


def shallow_clone(model: Any, cls: type | None = None) -> Any:
    """A shallow copy of the model, of its class or of `cls`, with its own hook dictionaries."""
    clone: Any = object.__new__(cls or type(model))
    for name, value in vars(model).items():
        own = name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called"))
        vars(clone)[name] = copy.copy(value) if own else value
    return clone


def output_class(model: type) -> Any:
    """The output class of a diffusers model, from the model's module, which moved in later releases."""
    return getattr(sys.modules[model.__module__], model.__name__.removesuffix("Model") + "Output")


def save_as_stock(model: Any) -> None:
    """Makes every pipeline save the fork as diffusers' model, which loads everywhere.

    A pipeline writes the model's `__module__` and its class's name into `model_index.json`. So the instance reports
    diffusers' module. Its class does not, or it could neither be pickled nor found by `inspect`.
    """
    stock = next(base for base in type(model).__mro__ if base.__module__.startswith("diffusers."))
    if stock.__name__ == type(model).__name__:  # else it is a user's own class
        vars(model)["__module__"] = stock.__module__


class CachedUNetMixin:
    """A mixin for diffusers U-Net classes."""

    # The values of the configuration that `forward` implements.
    supported_config: ClassVar[Mapping[str, Sequence[Any]]] = {}
    frame_axis: int | None = None  # of the sample, if it is a video

    # Attributes of the diffusers class that are used here.
    config: Any
    down_blocks: Any
    up_blocks: Any

    # Views of the blocks, made once and not registered as modules, so that the weights' names stay the parent's.
    down_layers: list[DownLayer]  # d_1 … d_{M-1}
    up_layers: list[UpLayer]  # u_0 … u_{M-1}

    @classmethod
    def sharing(cls, unet: Any) -> Self:
        """A fork that shares the modules and weights of a stock U-Net, which stays unchanged.

        Raises:
            ValueError: if the U-Net has parts that the fork does not implement, or is offloaded by accelerate.
        """
        fork = share_weights_as(cls, unet)
        fork.pair_layers()
        return fork

    def pair_layers(self) -> None:
        """Checks the configuration and makes the views; call it once the blocks exist."""
        save_as_stock(self)
        self.check_supported_config()
        self.down_layers = down_layers(self.down_blocks)
        self.up_layers = up_layers(self.up_blocks)

    @property
    def num_skip_branches(self) -> int:
        """M; `cache_branch_id` is 0 to M − 1."""
        return len(self.up_layers)

    def check_branch(self, branch: int, name: str = "cache_branch_id") -> None:
        """Raises ValueError, with the argument's name, if there is no such skip branch."""
        if not 0 <= branch < self.num_skip_branches:
            raise ValueError(f"{name} is {branch}; this U-Net has the skip branches 0 to {self.num_skip_branches - 1}")

    def check_cache(self, branch: int | None, cached_feature: Tensor | None, keep_branch_id: int | None = None) -> None:
        """Raises ValueError for a branch that does not exist, or for a feature or second branch without a first one."""
        if branch is not None:
            self.check_branch(branch)
        elif cached_feature is not None:
            raise ValueError("cached_feature needs the cache_branch_id at which it was cached")
        if keep_branch_id is not None and (branch is None or not 0 <= keep_branch_id < branch):
            raise ValueError(f"keep_branch_id is {keep_branch_id}; it must be at least 0 and below cache_branch_id")

    def check_attention(self, branch: int) -> int:
        """The number of attention layers that a retrieve step at this branch runs. Raises ValueError if it is 0."""
        count = self._num_attentions(branch)
        if not count:
            raise ValueError(
                f"there is no attention to cache in the layers that branch {branch} runs; choose a deeper branch"
            )
        return count

    def shallow_attention(
        self, branch: int | None, cached_attention: Sequence[Tensor] | None, keep_attention: bool
    ) -> ShallowAttention:
        """How a step treats attention in the layers that a retrieve step at `branch` runs.

        Raises:
            ValueError: no attention to cache, or attention cached at another branch.
        """
        if branch is None or (cached_attention is None and not keep_attention):
            return ShallowAttention()
        if cached_attention is None:
            self.check_attention(branch)
        elif len(cached_attention) != (count := self._num_attentions(branch)):
            raise ValueError(f"cached_attention is of {len(cached_attention)} layers; branch {branch} has {count}")
        return ShallowAttention(branch, cached_attention)

    def _num_attentions(self, branch: int) -> int:
        layers: list[Any] = [*self.down_layers[:branch], *self.up_layers[: branch + 1]]
        return sum(layer.attention is not None or layer.motion is not None for layer in layers)

    @property
    def freeu(self) -> bool:
        """Whether FreeU is on, which modifies the inputs of up layers in place."""
        return bool(getattr(self.up_blocks[0], "b1", None))

    def check_supported_config(self) -> None:
        """Raises ValueError naming the first part of the configuration that `forward` does not implement."""
        for name, supported in self.supported_config.items():
            given = self.config[name]
            for value in given if isinstance(given, list | tuple) else [given]:
                if value not in supported:
                    raise ValueError(f"{name} {value!r} is not supported by this U-Net; use diffusers' own for it")
