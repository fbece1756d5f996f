"""What U-Net and decoder are made of, with the weights' names of diffusers."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

TRANSFORMER_EPS = 1e-6  # of a transformer's group norm, whatever the U-Net's own is


def group_norm(groups: int, channels: int, eps: float) -> nn.GroupNorm:
    """Groups of neighbouring channels, as torch makes them; MLX's own are strided.

    Raises:
        ValueError: channels that the groups don't divide.
    """
    if channels % groups:
        raise ValueError(f"norm_num_groups is {groups}, which does not divide {channels} channels")
    return nn.GroupNorm(groups, channels, eps=eps, pytorch_compatible=True)


def attend(q: mx.array, k: mx.array, v: mx.array, heads: int, *, causal: bool = False) -> mx.array:
    """Attention (B, tokens, C) of queries (B, tokens, C) over keys and values (B, tokens', C)."""
    q, k, v = (x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2) for x in (q, k, v))  # (B, heads, tokens, C / heads)
    mask = "causal" if causal else None
    h = mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5, mask=mask)
    return h.swapaxes(1, 2).flatten(2)


class ResnetBlock(nn.Module):
    """Two convolutions with a shortcut; in a U-Net the time embedding is added between them."""

    def __init__(self, channels_in: int, channels: int, *, groups: int, eps: float, embedding: int | None) -> None:
        super().__init__()
        self.norm1 = group_norm(groups, channels_in, eps)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1)
        if embedding is not None:
            self.time_emb_proj = nn.Linear(embedding, channels)
        self.norm2 = group_norm(groups, channels, eps)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        if channels_in != channels:
            self.conv_shortcut = nn.Conv2d(channels_in, channels, 1)

    def __call__(self, x: mx.array, emb: mx.array | None = None) -> mx.array:
        h = self.conv1(nn.silu(self.norm1(x)))  # (B, H, W, C)
        if emb is not None:
            h = h + self.time_emb_proj(nn.silu(emb))[:, None, None]
        h = self.conv2(nn.silu(self.norm2(h)))
        return h + (self.conv_shortcut(x) if "conv_shortcut" in self else x)


class Attention(nn.Module):
    """Attention of x (B, tokens, C) over a context (B, tokens', C'), or over itself.

    Raises:
        ValueError: channels that the heads don't divide.
    """

    def __init__(self, channels: int, heads: int, context: int | None = None, *, bias: bool = False) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{heads} heads of attention do not divide {channels} channels")
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=bias)
        self.to_k = nn.Linear(context or channels, channels, bias=bias)
        self.to_v = nn.Linear(context or channels, channels, bias=bias)
        self.to_out = [nn.Linear(channels, channels)]

    def __call__(self, x: mx.array, context: mx.array | None = None) -> mx.array:
        context = x if context is None else context
        return self.to_out[0](attend(self.to_q(x), self.to_k(context), self.to_v(context), self.heads))


class GatedLinear(nn.Module):
    """A linear layer whose one half is gated by the GELU of the other."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * hidden)

    def __call__(self, x: mx.array) -> mx.array:
        h, gate = mx.split(self.proj(x), 2, axis=-1)
        return h * nn.gelu(gate)


class FeedForward(nn.Module):
    """Two linear layers, the first of them gated."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # In the middle diffusers has dropout, which counts in the weights' names.
        self.net = [GatedLinear(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels)]

    def __call__(self, x: mx.array) -> mx.array:
        for layer in self.net:
            x = layer(x)
        return x


class TransformerBlock(nn.Module):
    """Attention over the image, attention over the text, a feed-forward network."""

    def __init__(self, channels: int, heads: int, context: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, heads, context)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def __call__(self, x: mx.array, context: mx.array) -> mx.array:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Transformer(nn.Module):
    """What a U-Net's attention layer is. A projection by 1 × 1 convolution is a linear layer here."""

    def __init__(self, channels: int, heads: int, context: int, *, groups: int, depth: int) -> None:
        super().__init__()
        self.norm = group_norm(groups, channels, TRANSFORMER_EPS)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = [TransformerBlock(channels, heads, context) for _ in range(depth)]
        self.proj_out = nn.Linear(channels, channels)

    def __call__(self, x: mx.array, context: mx.array) -> mx.array:
        h = self.proj_in(self.norm(x).flatten(1, 2))  # (B, H · W, C)
        for block in self.transformer_blocks:
            h = block(h, context)
        return x + self.proj_out(h).reshape(x.shape)  # (B, H, W, C)


class Downsample(nn.Module):
    """Half the size, by a convolution with stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def __call__(self, x: mx.array) -> mx.array:
        return self.conv(x)  # (B, H/2, W/2, C)


class Upsample(nn.Module):
    """Twice the size, every value repeated, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def __call__(self, x: mx.array) -> mx.array:
        return self.conv(mx.repeat(mx.repeat(x, 2, axis=1), 2, axis=2))  # (B, 2H, 2W, C)
