"""Multiply-accumulates of a transformer, layer by layer, counted without weights on the meta device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from eval.counting.macs import count

from .config import LayerCacheConfig
from .transformer import Transformer2DModel

XL2_256: dict[str, Any] = {  # DiT-XL/2 for 256 × 256 pixels, facebook/DiT-XL-2-256: 28 blocks, width 1152
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 28,
    "attention_bias": True,
    "sample_size": 32,
    "patch_size": 2,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
}


@dataclass(frozen=True)
class LayerMacs:
    """Of one row of the batch at one step: matrix products of attention counted, biases and normalisations not.

    Attributes:
        rest: of a step that reuses all layers.
        attention, mlp: of a layer that is computed. All blocks are alike.
        depth: L.
    """

    rest: int
    attention: int
    mlp: int
    depth: int

    @property
    def full(self) -> int:
        """Of a full step."""
        return self.rest + self.depth * (self.attention + self.mlp)

    def total(self, table: np.ndarray) -> int:
        """Of a run that computes these layers, bool (T, 2 L)."""
        layers = int(table[:, ::2].sum()) * self.attention + int(table[:, 1::2].sum()) * self.mlp
        return len(table) * self.rest + layers

    def speed_up(self, table: np.ndarray) -> float:
        """By how much such a run has fewer MACs than one of full steps."""
        return len(table) * self.full / self.total(table)

    def speed_up_of(self, cache: LayerCacheConfig, num_steps: int) -> float:
        """The same, of a description."""
        return self.speed_up(cache.table(num_steps, self.depth))


def layer_macs(config: Any) -> LayerMacs:
    """Counts a transformer of this configuration on latents of its own size."""
    with torch.device("meta"):
        model = Transformer2DModel(**{k: v for k, v in dict(config).items() if not k.startswith("_")}).to("meta").eval()
        side, width = model.config.sample_size, model.num_attention_heads * model.attention_head_dim
        inputs = {
            "hidden_states": torch.empty(1, model.config.in_channels, side, side),
            "timestep": torch.zeros(1, dtype=torch.long),
            "class_labels": torch.zeros(1, dtype=torch.long),
        }
        outputs: list[Any] = [torch.empty(1, (side // model.patch_size) ** 2, width)] * (2 * model.depth)

        def macs(*computed: int) -> int:
            reused = [None if layer in computed else output for layer, output in enumerate(outputs)]
            return count(model, {**inputs, "reused": reused}).with_attention

        rest = macs()
        return LayerMacs(rest, macs(0) - rest, macs(1) - rest, model.depth)
