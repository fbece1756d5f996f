"""What every forked U-Net is to the cache: M pairs of a down layer, which makes a skip, and an up layer."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple, Self

from torch import Tensor, nn

from .shallow_attention import ShallowAttention


class DownLayer(NamedTuple):
    """d_k for k ≥ 1: either a resnet, with attention or without, or a downsampler."""

    resnet: nn.Module | None
    attention: nn.Module | None
    downsampler: nn.Module | None


class UpLayer(NamedTuple):
    """u_k: a resnet over the main branch and the skip, attention if there is any, upsampler if its block ends here."""

    block: nn.Module
    resnet: nn.Module
    attention: nn.Module | None
    upsampler: nn.Module | None


def down_layers(down_blocks: Any) -> list[DownLayer]:
    """d_1 … d_{M-1} of a diffusers U-Net, or of a ControlNet: views of its blocks, registered nowhere."""
    layers = []
    for block in down_blocks:
        attentions = getattr(block, "attentions", [None] * len(block.resnets))
        layers += [DownLayer(r, a, None) for r, a in zip(block.resnets, attentions, strict=True)]
        layers += [DownLayer(None, None, downsampler) for downsampler in block.downsamplers or ()]
    return layers


def shared_copy(model: Any, cls: type) -> Any:
    """`model` as a `cls`, over its very modules and weights; itself if it is one already.

    Hooks of the model are on the copy too; those put on either later are not on the other.

    Raises:
        ValueError: if the model is offloaded by accelerate.
    """
    if isinstance(model, cls):
        return model
    if hasattr(model, "_hf_hook"):
        raise ValueError(f"the {type(model).__name__} is offloaded; build the pipeline first and offload that")
    if "forward" in vars(model):
        raise ValueError(
            f"the forward of this {type(model).__name__} was replaced, as by compiling it; do that afterwards"
        )
    shared = twin(model)
    shared.__class__ = cls
    return shared


def twin(model: Any) -> Any:
    """Another object with the model's content, whose hooks are the same now and its own from now on."""
    other = copy.copy(model)
    for name, value in vars(model).items():
        if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")):
            vars(other)[name] = copy.copy(value)
    return other


class SkipPairs:
    """Put in front of a diffusers U-Net class."""

    # What is used of the class behind.
    config: Any
    down_blocks: Any
    up_blocks: Any

    @classmethod
    def sharing(cls, unet: Any) -> Self:
        """A fork over the very modules and weights of a stock U-Net, which itself stays as it is.

        Raises:
            ValueError: if the U-Net has parts that the fork does not write out, or is offloaded by accelerate.
        """
        fork = shared_copy(unet, cls)
        fork.refuse_what_is_not_written_out()
        return fork

    @property
    def num_skip_branches(self) -> int:
        """M; `cache_branch_id` is 0 to M − 1."""
        return sum(len(block.resnets) for block in self.up_blocks)

    @property
    def down_layers(self) -> list[DownLayer]:
        """d_1 … d_{M-1}: views of the parent's blocks, registered nowhere, so the weights' names stay the parent's."""
        return down_layers(self.down_blocks)

    @property
    def up_layers(self) -> list[UpLayer]:
        """u_0 … u_{M-1}: the last to run comes first."""
        layers = []
        for block in self.up_blocks:
            attentions = getattr(block, "attentions", [None] * len(block.resnets))
            upsamplers = [None] * (len(block.resnets) - 1) + list(block.upsamplers or [None])
            layers += [UpLayer(block, *parts) for parts in zip(block.resnets, attentions, upsamplers, strict=True)]
        return layers[::-1]

    def check_branch(self, branch: int, name: str = "cache_branch_id") -> None:
        """Raises ValueError, with the argument's name, if there is no such skip branch."""
        if not 0 <= branch < self.num_skip_branches:
            raise ValueError(f"{name} is {branch}; this U-Net has the skip branches 0 to {self.num_skip_branches - 1}")

    def check_cache(self, branch: int | None, cached_feature: Any) -> None:
        """Raises ValueError if there is no such skip branch, or a feature comes without one."""
        if branch is not None:
            self.check_branch(branch)
        elif cached_feature is not None:
            raise ValueError("cached_feature needs the cache_branch_id at which it was kept")

    def read_cache(
        self,
        branch: int | None,
        cached_feature: Tensor | tuple[Tensor, ...] | None,
        keep_branch_id: int | None = None,
        keep_attention: bool = False,
    ) -> tuple[Any, ShallowAttention]:
        """The deep feature (None in a full step), and what is to be done with attention.

        Raises:
            ValueError: no such branch; a feature or a second branch without a first; attention to be kept where there
                is none, or retrieved from another branch.
        """
        self.check_cache(branch, cached_feature)
        if keep_branch_id is not None and (branch is None or not 0 <= keep_branch_id < branch):
            raise ValueError(f"keep_branch_id is {keep_branch_id}; it must be from 0 to below cache_branch_id")
        if branch is None:
            return None, ShallowAttention()
        shallow = branch if keep_branch_id is None else keep_branch_id
        layers: list[Any] = [*self.down_layers[:shallow], *self.up_layers[: shallow + 1]]
        count = sum(layer.attention is not None for layer in layers)
        if isinstance(cached_feature, tuple):
            feature, *given = cached_feature
            if len(given) != count:
                raise ValueError(f"cached_feature has {len(given)} layers' attention; branch {branch} has {count}")
            return feature, ShallowAttention(shallow, given)
        if keep_attention and (cached_feature is None or keep_branch_id is not None):
            if not count:
                raise ValueError(
                    f"there is no attention to keep in the layers that branch {shallow} runs; choose a deeper branch"
                )
            return cached_feature, ShallowAttention(shallow)
        return cached_feature, ShallowAttention()

    def refuse_what_is_not_written_out(self) -> None:
        """Raises ValueError naming the first part of the configuration that `forward` does not write out."""
