"""The U-Net of Stable Diffusion 1.x and 2.x in MLX, with DeepCache in its forward.

The layers and the cache are those of `unets.unet_2d_condition`: M pairs of a down layer d_k, which makes skip s_k, and
an up layer u_k, which consumes it.
"""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from unets.cached_unet import DownLayer, UpLayer, down_layers, up_layers

from .blocks import Downsample, ResnetBlock, Transformer, Upsample, group_norm

# The options of diffusers' configuration that are written out here; all others must have their defaults.
OPTIONS = (
    "sample_size", "in_channels", "out_channels", "down_block_types", "up_block_types", "block_out_channels",
    "layers_per_block", "norm_num_groups", "norm_eps", "cross_attention_dim", "transformer_layers_per_block",
    "attention_head_dim", "num_attention_heads", "use_linear_projection",
    "upcast_attention",  # ignored by diffusers' attention of torch 2, too
)  # fmt: skip
DOWN_BLOCKS = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}  # whether it has attention
UP_BLOCKS = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}


class Block(nn.Module):
    """One resolution of one half: resnets, an attention layer for each or none, and a resampler unless it is last."""

    def __init__(
        self, resnets: list[ResnetBlock], attentions: list[Transformer] | None, **resamplers: list[nn.Module]
    ) -> None:
        super().__init__()
        self.resnets = resnets
        if attentions is not None:
            self.attentions = attentions
        for name, layers in resamplers.items():  # downsamplers or upsamplers
            setattr(self, name, layers)


class TimeEmbedding(nn.Module):
    """Two linear layers over sines and cosines."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(channels, size)
        self.linear_2 = nn.Linear(size, size)

    def __call__(self, waves: mx.array) -> mx.array:
        return self.linear_2(nn.silu(self.linear_1(waves)))


def waves(timestep: float, channels: int) -> mx.array:
    """Cosines and sines (1, channels) of a timestep, at frequencies from 1 down to 1/10,000."""
    half = channels // 2
    frequencies = mx.exp(-math.log(10_000) * mx.arange(half, dtype=mx.float32) / half)
    angles = timestep * frequencies
    return mx.concatenate([mx.cos(angles), mx.sin(angles)])[None]


class UNet2DConditionModel(nn.Module):
    """The network of diffusers' class of this name, for the configurations that Stable Diffusion 1.x and 2.x have.

    Args:
        config: diffusers' configuration, with its defaults filled in.

    Raises:
        ValueError: a block that is not written out here.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        channels = config["block_out_channels"]  # 320, 640, 1280, 1280
        levels = len(channels)
        embedding = 4 * channels[0]
        heads = _each(config["num_attention_heads"] or config["attention_head_dim"], levels)  # named wrongly there
        depths = _each(config["transformer_layers_per_block"], levels)
        count = config["layers_per_block"]
        down = _attends(config, "down_block_types", DOWN_BLOCKS)
        up = _attends(config, "up_block_types", UP_BLOCKS)
        groups = config["norm_num_groups"]

        def resnet(channels_in: int, level: int) -> ResnetBlock:
            return ResnetBlock(channels_in, channels[level], groups=groups, eps=config["norm_eps"], embedding=embedding)

        def transformer(level: int) -> Transformer:
            return Transformer(
                channels[level], heads[level], config["cross_attention_dim"], groups=groups, depth=depths[level]
            )

        self.channels = channels[0]
        self.conv_in = nn.Conv2d(config["in_channels"], channels[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(channels[0], embedding)
        skips = [channels[0]]  # channels of s_0 … s_{M-1}
        self.down_blocks = []
        for level in range(levels):
            last = level == levels - 1
            self.down_blocks.append(
                Block(
                    [resnet(skips[-1] if k == 0 else channels[level], level) for k in range(count)],
                    [transformer(level) for _ in range(count)] if down[level] else None,
                    downsamplers=[] if last else [Downsample(channels[level])],
                )
            )
            skips += [channels[level]] * (count if last else count + 1)
        self.mid_block = Block([resnet(channels[-1], -1), resnet(channels[-1], -1)], [transformer(-1)])
        self.up_blocks = []
        below = channels[-1]
        for position, level in enumerate(reversed(range(levels))):
            resnets = []
            for _ in range(count + 1):
                resnets.append(resnet(below + skips.pop(), level))
                below = channels[level]
            self.up_blocks.append(
                Block(
                    resnets,
                    [transformer(level) for _ in resnets] if up[position] else None,
                    upsamplers=[] if level == 0 else [Upsample(channels[level])],
                )
            )
        self.conv_norm_out = group_norm(groups, channels[0], config["norm_eps"])
        self.conv_out = nn.Conv2d(channels[0], config["out_channels"], 3, padding=1)

    @property
    def down_layers(self) -> list[DownLayer]:
        """d_1 … d_{M-1}."""
        return down_layers(self.down_blocks)

    @property
    def up_layers(self) -> list[UpLayer]:
        """u_0 … u_{M-1}."""
        return up_layers(self.up_blocks)

    @property
    def num_skip_branches(self) -> int:
        """M; `cache_branch_id` is 0 to M − 1."""
        return len(self.up_layers)

    def check_branch(self, branch: int) -> None:
        """Raises ValueError if there is no such skip branch."""
        if not 0 <= branch < self.num_skip_branches:
            raise ValueError(
                f"cache_branch_id is {branch}; this U-Net has the skip branches 0 to {self.num_skip_branches - 1}"
            )

    def __call__(
        self,
        sample: mx.array,
        timestep: float,
        context: mx.array,
        cache_branch_id: int | None = None,
        cached_feature: mx.array | None = None,
    ) -> tuple[mx.array, mx.array | None]:
        """Predicts the noise. Shapes in the comments are Stable Diffusion 1.5's.

        Args:
            sample: (B, H, W, 4) noisy latents.
            context: (B, tokens, 768) text.
            cache_branch_id: m, 0 to M − 1. None keeps nothing.
            cached_feature: what an earlier step kept at the same branch; given, this is a retrieve step.

        Returns:
            The noise (B, H, W, 4), and what entered u_m from below (B, H_m, W_m, C_m), None without a branch.

        Raises:
            ValueError: branch out of range, feature without branch, or a size that halves to no whole number.
        """
        m, retrieve = cache_branch_id, cached_feature is not None
        if m is not None:
            self.check_branch(m)
        elif retrieve:
            raise ValueError("cached_feature needs the cache_branch_id at which it was kept")
        divisor = 2 ** (len(self.down_blocks) - 1)
        if any(side % divisor for side in sample.shape[1:3]):
            raise ValueError(f"latents are {sample.shape[1]} × {sample.shape[2]}; make both divisible by {divisor}")

        # 1. Condition.
        emb = self.time_embedding(waves(timestep, self.channels).astype(sample.dtype))  # (1, 1280)

        # 2. Down.
        h = self.conv_in(sample)  # d_0: (B, H, W, 320)
        skips = [h]
        for d in self.down_layers[: m if retrieve else None]:  # cache (1): a retrieve step runs d_1 … d_m only
            h = run_down(d, h, emb, context)
            skips.append(h)  # (B, H, W, 320) … (B, H/8, W/8, 1280)

        # 3. Middle.
        if retrieve:
            h = cached_feature  # cache (2): equation 5, the feature of an earlier step stands for all that is deeper
        else:
            first, second = self.mid_block.resnets
            h = self.mid_block.attentions[0](first(h, emb), context)
            h = second(h, emb)  # (B, H/8, W/8, 1280)

        # 4. Up.
        kept = None
        while skips:
            skip = skips.pop()
            k = len(skips)
            if k == m:
                kept = h  # cache (3): equation 4, what enters u_m from below is kept
            h = run_up(self.up_layers[k], h, skip, emb, context)

        # 5. Out.
        return self.conv_out(nn.silu(self.conv_norm_out(h))), kept  # (B, H, W, 4)


def run_down(d: DownLayer, h: mx.array, emb: mx.array, context: mx.array) -> mx.array:
    """d_k for k ≥ 1."""
    if d.resnet is not None:
        h = d.resnet(h, emb)
    if d.downsampler is not None:
        h = d.downsampler(h)  # (B, H/2, W/2, C)
    return h if d.attention is None else d.attention(h, context)


def run_up(u: UpLayer, h: mx.array, skip: mx.array, emb: mx.array, context: mx.array) -> mx.array:
    """u_k."""
    h = u.resnet(mx.concatenate([h, skip], axis=-1), emb)  # of (B, H, W, C + C_k)
    if u.attention is not None:
        h = u.attention(h, context)
    return h if u.upsampler is None else u.upsampler(h)  # (B, 2H, 2W, C)


def _each(value: Any, levels: int) -> list[int]:
    """An option that is one number for all levels, or a list of them."""
    return [value] * levels if isinstance(value, int) else list(value)


def _attends(config: dict[str, Any], name: str, blocks: dict[str, bool]) -> list[bool]:
    """Whether each of the blocks of that option has attention."""
    for block in config[name]:
        if block not in blocks:
            raise ValueError(f"{name} {block!r} is not supported in MLX; use stable_diffusion.py")
    return [blocks[block] for block in config[name]]
