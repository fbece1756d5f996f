"""CLIP's text encoder in MLX, with the weights' names of transformers' `CLIPTextModel`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .blocks import attend

OPTIONS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings", "hidden_act", "layer_norm_eps",
    "projection_dim", "attention_dropout", "initializer_range", "initializer_factor",  # of no effect here
    "pad_token_id", "bos_token_id", "eos_token_id",  # the pooled output's, which is not computed
)  # fmt: skip


def quick_gelu(x: mx.array) -> mx.array:
    """What OpenAI's CLIP has instead of GELU."""
    return x * mx.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[mx.array], mx.array]] = {"quick_gelu": quick_gelu, "gelu": nn.gelu}


class Embeddings(nn.Module):
    """Of tokens and their positions."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config["vocab_size"], config["hidden_size"])
        self.position_embedding = nn.Embedding(config["max_position_embeddings"], config["hidden_size"])

    def __call__(self, tokens: mx.array) -> mx.array:
        return self.token_embedding(tokens) + self.position_embedding.weight[: tokens.shape[1]]


class SelfAttention(nn.Module):
    """Each token's over those up to it."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(size, size)
        self.k_proj = nn.Linear(size, size)
        self.v_proj = nn.Linear(size, size)
        self.out_proj = nn.Linear(size, size)

    def __call__(self, x: mx.array) -> mx.array:
        return self.out_proj(attend(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.heads, causal=True))


class FeedForward(nn.Module):
    """Two linear layers."""

    def __init__(self, size: int, hidden: int, activation: str) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"hidden_act {activation!r} is not supported in MLX; use stable_diffusion.py")
        self.activation = ACTIVATIONS[activation]
        self.fc1 = nn.Linear(size, hidden)
        self.fc2 = nn.Linear(hidden, size)

    def __call__(self, x: mx.array) -> mx.array:
        return self.fc2(self.activation(self.fc1(x)))


class Layer(nn.Module):
    """Attention and a feed-forward network, each over normalised inputs."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        size, eps = config["hidden_size"], config["layer_norm_eps"]
        self.layer_norm1 = nn.LayerNorm(size, eps=eps)
        self.self_attn = SelfAttention(size, config["num_attention_heads"])
        self.layer_norm2 = nn.LayerNorm(size, eps=eps)
        self.mlp = FeedForward(size, config["intermediate_size"], config["hidden_act"])

    def __call__(self, x: mx.array) -> mx.array:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    """The layers one after the other."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.layers = [Layer(config) for _ in range(config["num_hidden_layers"])]

    def __call__(self, x: mx.array) -> mx.array:
        for layer in self.layers:
            x = layer(x)
        return x


class TextEncoder(nn.Module):
    """Tokens (B, tokens) to the last hidden state (B, tokens, 768). Raises ValueError for another activation."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.final_layer_norm = nn.LayerNorm(config["hidden_size"], eps=config["layer_norm_eps"])

    def __call__(self, tokens: mx.array) -> mx.array:
        return self.final_layer_norm(self.encoder(self.embeddings(tokens)))
