"""A U-Net of latent-diffusion's kind, from its published structure, and the names of its weights in diffusers.

Weights' names, order of blocks and arithmetic are those of Stable Diffusion 1.5's checkpoints. `UNetModel` is what
CompVis's code is to `unets.ldm`: a class whose module has `timestep_embedding` and `th`.
"""

from __future__ import annotations

import math
from typing import Any

import diffusers
import torch as th
from torch import Tensor, nn
from torch.nn import functional as F


def timestep_embedding(timesteps: Tensor, dim: int, repeat_only: bool = False) -> Tensor:
    """Cosines, then sines, of wavelengths from 2π to 20000π: (B,) to (B, dim)."""
    half = dim // 2
    frequencies = th.exp(-math.log(10000) * th.arange(half, dtype=th.float32) / half)
    angles = timesteps[:, None].float() * frequencies[None]
    return th.cat([angles.cos(), angles.sin()], dim=-1)


class TimestepBlock(nn.Module):
    """A layer that takes the embedding too."""


class ResBlock(TimestepBlock):
    def __init__(self, channels: int, emb_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(groups, channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, out_channels))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(groups, out_channels), nn.SiLU(), nn.Dropout(0.0),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )  # fmt: skip
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class CrossAttention(nn.Module):
    def __init__(self, dim: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k, self.to_v = (nn.Linear(context_dim, dim, bias=False) for _ in range(2))
        self.to_out = nn.Sequential(nn.Linear(dim, dim), nn.Dropout(0.0))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for t in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.to_out(attended.transpose(1, 2).flatten(2))


class GEGLU(nn.Module):
    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(dim, 4 * dim), nn.Dropout(0.0), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    def __init__(self, dim: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.attn1, self.attn2 = CrossAttention(dim, dim, heads), CrossAttention(dim, context_dim, heads)
        self.ff = FeedForward(dim)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = self.attn1(self.norm1(x)) + x
        x = self.attn2(self.norm2(x), context) + x
        return self.ff(self.norm3(x)) + x


class SpatialTransformer(nn.Module):
    def __init__(self, channels: int, context_dim: int, heads: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(2))
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, context_dim, heads)])

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        h = self.proj_in(self.norm(x)).permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        for block in self.transformer_blocks:
            h = block(h, context)
        h = h.reshape(batch, height, width, channels).permute(0, 3, 1, 2).contiguous()
        return self.proj_out(h) + x


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, output_shape: th.Size | None = None) -> Tensor:
        size = [2 * side for side in x.shape[2:]] if output_shape is None else list(output_shape[2:])
        return self.conv(F.interpolate(x, size=size, mode="nearest"))


class TimestepEmbedSequential(nn.Sequential):
    def forward(self, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:  # type: ignore[override]
        for layer in self:
            if isinstance(layer, TimestepBlock):
                x = layer(x, emb)
            else:
                x = layer(x, context) if isinstance(layer, SpatialTransformer) else layer(x)
        return x


class UNetModel(nn.Module):
    """Two ResBlocks a level, attention on all levels but the last, as in Stable Diffusion 1.5."""

    def __init__(self, channels: tuple[int, ...], context_dim: int, heads: int, groups: int) -> None:
        super().__init__()
        self.model_channels, self.dtype = channels[0], th.float32
        self.num_classes, self.predict_codebook_ids = None, False
        emb = 4 * channels[0]
        self.time_embed = nn.Sequential(nn.Linear(channels[0], emb), nn.SiLU(), nn.Linear(emb, emb))

        def resnet(before: int, after: int, attention: bool) -> list[nn.Module]:
            parts: list[nn.Module] = [ResBlock(before, emb, after, groups)]
            return parts + [SpatialTransformer(after, context_dim, heads, groups)] * attention

        blocks: list[list[nn.Module]] = [[nn.Conv2d(4, channels[0], 3, padding=1)]]
        widths, ch = [channels[0]], channels[0]
        for level, width in enumerate(channels):
            for _ in range(2):
                blocks.append(resnet(ch, width, level < len(channels) - 1))
                ch = width
                widths.append(ch)
            if level < len(channels) - 1:
                blocks.append([Downsample(ch)])
                widths.append(ch)
        self.input_blocks = nn.ModuleList(TimestepEmbedSequential(*block) for block in blocks)
        self.middle_block = TimestepEmbedSequential(*resnet(ch, ch, True), *resnet(ch, ch, False))
        blocks = []
        for level in reversed(range(len(channels))):
            for i in range(3):
                blocks.append(resnet(ch + widths.pop(), channels[level], level < len(channels) - 1))
                ch = channels[level]
                if level and i == 2:
                    blocks[-1].append(Upsample(ch))
        self.output_blocks = nn.ModuleList(TimestepEmbedSequential(*block) for block in blocks)
        self.out = nn.Sequential(nn.GroupNorm(groups, ch), nn.SiLU(), nn.Conv2d(ch, 4, 3, padding=1))

    def forward(self, x: Tensor, timesteps: Any = None, context: Any = None, y: Any = None) -> Tensor:
        emb = self.time_embed(timestep_embedding(timesteps, self.model_channels))
        h, hs = x.type(self.dtype), []
        for block in self.input_blocks:
            h = block(h, emb, context)
            hs.append(h)
        h = self.middle_block(h, emb, context)
        for block in self.output_blocks:
            h = block(th.cat([h, hs.pop()], dim=1), emb, context)
        return self.out(h.type(x.dtype))


# --- weights ---------------------------------------------------------------------------------------------------------

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
AROUND = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0", "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}  # fmt: skip


def ldm_name(name: str) -> str:
    """The name in Stable Diffusion's checkpoints of a weight of diffusers' U-Net, two resnets a block."""
    kind, _, rest = name.partition(".")
    if kind in ("down_blocks", "up_blocks"):
        block, part, index, rest = rest.split(".", 3)
        if kind == "down_blocks":
            layer = 3 if part == "downsamplers" else 1 + int(index)
            start = f"input_blocks.{3 * int(block) + layer}.{int(part == 'attentions')}"
            rest = rest.replace("conv.", "op.") if part == "downsamplers" else rest
        else:
            last = 1 if int(block) == 0 else 2  # the first has no attention before its upsampler
            layer, place = (2, last) if part == "upsamplers" else (int(index), int(part == "attentions"))
            start = f"output_blocks.{3 * int(block) + layer}.{place}"
        resnet = part == "resnets"
    else:
        start = next(known for known in AROUND if name.startswith(known + "."))
        rest, resnet = name.removeprefix(start + "."), "resnets" in start
        start = AROUND[start]
    if resnet:
        module, _, tensor = rest.rpartition(".")
        rest = f"{RESNET[module]}.{tensor}"
    return f"{start}.{rest}"


def of_diffusers(unet: diffusers.UNet2DConditionModel, cls: type = UNetModel) -> Any:
    """A `UNetModel`, or what is made as one is, with the weights of a U-Net of Stable Diffusion 1.5's layout."""
    config = unet.config
    made = cls(config.block_out_channels, config.cross_attention_dim, config.attention_head_dim, config.norm_num_groups)
    made.load_state_dict({ldm_name(name): tensor for name, tensor in unet.state_dict().items()})
    return made.eval()
