"""The decoder of Stable Diffusion's autoencoder in MLX, with the weights' names of diffusers' `AutoencoderKL`."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .blocks import Attention, ResnetBlock, Upsample, group_norm

OPTIONS = (
    "out_channels", "up_block_types", "block_out_channels", "layers_per_block", "latent_channels", "norm_num_groups",
    "scaling_factor",
    "in_channels", "down_block_types", "sample_size", "force_upcast",  # the encoder's, or of no effect here
)  # fmt: skip
EPS = 1e-6


class ImageAttention(Attention):
    """Of the middle block: one head over all positions."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(channels, heads=1, bias=True)
        self.group_norm = group_norm(groups, channels, EPS)

    def __call__(self, x: mx.array, context: mx.array | None = None) -> mx.array:
        return x + super().__call__(self.group_norm(x).flatten(1, 2)).reshape(x.shape)  # (B, H, W, C)


class Block(nn.Module):
    """Resnets, and an upsampler unless it is the last block; the middle block has attention between its two."""

    def __init__(self, channels_in: int, channels: int, count: int, *, groups: int, upsamples: bool = False) -> None:
        super().__init__()
        sizes = [channels_in] + [channels] * count
        self.resnets = [ResnetBlock(size, channels, groups=groups, eps=EPS, embedding=None) for size in sizes[:count]]
        if upsamples:
            self.upsamplers = [Upsample(channels)]


class Decoder(nn.Module):
    """Convolution, middle block, and an up block for each level."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        channels = config["block_out_channels"][::-1]  # 512, 512, 256, 128
        groups, count = config["norm_num_groups"], config["layers_per_block"] + 1
        for block in config["up_block_types"]:
            if block != "UpDecoderBlock2D":
                raise ValueError(f"up_block_types {block!r} is not supported in MLX; use stable_diffusion.py")
        self.conv_in = nn.Conv2d(config["latent_channels"], channels[0], 3, padding=1)
        self.mid_block = Block(channels[0], channels[0], 2, groups=groups)
        self.mid_block.attentions = [ImageAttention(channels[0], groups)]
        below = channels[0]
        self.up_blocks: list[Block] = []
        for size in channels:
            last = len(self.up_blocks) == len(channels) - 1
            self.up_blocks.append(Block(below, size, count, groups=groups, upsamples=not last))
            below = size
        self.conv_norm_out = group_norm(groups, below, EPS)
        self.conv_out = nn.Conv2d(below, config["out_channels"], 3, padding=1)

    def __call__(self, z: mx.array) -> mx.array:
        h = self.conv_in(z)  # (B, H, W, 512)
        first, second = self.mid_block.resnets
        h = second(self.mid_block.attentions[0](first(h)))
        for block in self.up_blocks:
            for resnet in block.resnets:
                h = resnet(h)
            if "upsamplers" in block:
                h = block.upsamplers[0](h)  # (B, 2H, 2W, C)
        return self.conv_out(nn.silu(self.conv_norm_out(h)))  # (B, 8H, 8W, 3)


class LatentDecoder(nn.Module):
    """Latents (B, H, W, 4), scaled as the U-Net has them, to images (B, 8H, 8W, 3) in [−1, 1].

    Raises:
        ValueError: a block that is not written out here.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.scaling_factor = config["scaling_factor"]
        self.post_quant_conv = nn.Conv2d(config["latent_channels"], config["latent_channels"], 1)
        self.decoder = Decoder(config)

    def __call__(self, latents: mx.array) -> mx.array:
        return self.decoder(self.post_quant_conv(latents / self.scaling_factor))
