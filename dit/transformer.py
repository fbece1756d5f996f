"""A fork of diffusers' `Transformer2DModel` as DiT uses it (Peebles and Xie 2023), with layer caching in its forward.

A block adds to the tokens what its attention gives, and then what its MLP gives, each scaled by a gate that follows
from timestep and class (adaLN-Zero):

    h ← h + gate · attention(norm(h)),    h ← h + gate′ · mlp(norm(h))

What is kept is what attention or MLP gave, before its gate; a step that reuses it scales it by its own gate, as the
released code of Learning-to-Cache does. Timesteps, classes and gates cost one part in a hundred or less.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import diffusers
import torch
import torch.nn.functional as F
from diffusers.models.transformer_2d import Transformer2DModelOutput
from torch import Tensor

from unets.cached_unet import save_as_stock, share_weights_as

from .cache import Outputs

WANTED = {  # what `forward` is written for
    "norm_type": "ada_norm_zero",
    "cross_attention_dim": None,
    "num_vector_embeds": None,
    "only_cross_attention": False,
    "double_self_attention": False,
    "attention_type": "default",
    "caption_channels": None,
}


@dataclass
class CachedTransformerOutput(Transformer2DModelOutput):
    """The sample (B, C, H, W), and of each of the 2 L layers its output (B, tokens, width), computed or reused."""

    outputs: tuple[Tensor, ...] | None = None


class Transformer2DModel(diffusers.Transformer2DModel):
    """diffusers' class, with a forward that can reuse the outputs of layers. Weights and configuration are its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.check_supported_config()
        save_as_stock(self)

    @classmethod
    def sharing(cls, transformer: Any) -> Self:
        """A fork over the modules and weights of a stock transformer, which itself stays as it is.

        Raises:
            ValueError: another layout than DiT's; or it is offloaded by accelerate, or compiled.
        """
        fork = share_weights_as(cls, transformer)
        fork.check_supported_config()
        save_as_stock(fork)
        return fork

    @property
    def depth(self) -> int:
        """L, its blocks."""
        return len(self.transformer_blocks)

    def check_supported_config(self) -> None:
        """Raises ValueError naming the first part of the configuration that `forward` does not write out."""
        for name, wanted in WANTED.items():
            if self.config[name] != wanted:
                raise ValueError(f"{name} {self.config[name]!r} is not DiT's; use diffusers' own Transformer2DModel")
        if self.config.patch_size is None or self.config.num_embeds_ada_norm is None:
            raise ValueError("a transformer without patches or without classes is not DiT's; use diffusers' own")

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        timestep: Tensor | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        class_labels: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        attention_mask: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        return_dict: bool = True,
        reused: Outputs | None = None,
        shares: Tensor | None = None,
    ) -> Transformer2DModelOutput | tuple[Any, ...]:
        """Predicts the noise. Shapes in the comments are those of DiT-XL/2 for 256 × 256 pixels.

        Args:
            hidden_states: (B, C, H, W) noisy latents.
            timestep, class_labels: (B,) each.
            encoder_hidden_states, added_cond_kwargs, cross_attention_kwargs, attention_mask, encoder_attention_mask:
                the parent's, of other models; refused.
            reused: of each of the 2 L layers, None where it is computed, or the output that it is to reuse. None for
                all is the parent's behaviour, and the parent's return type.
            shares: (2 L,) while a router is trained: a layer that is given an output gives this share of what it
                computes, and the rest of what it was given.

        Returns:
            The parent's output; with `reused`, a `CachedTransformerOutput`.

        Raises:
            ValueError: an argument of another model; `reused` of another number of layers.
        """
        others = (
            encoder_hidden_states, added_cond_kwargs, cross_attention_kwargs, attention_mask, encoder_attention_mask,
        )  # fmt: skip
        if any(other is not None for other in others):
            raise ValueError("this is DiT's fork, which takes timestep and class_labels alone besides the latents")
        if reused is not None and len(reused) != 2 * self.depth:
            raise ValueError(f"reused is of {len(reused)} layers; this transformer has {2 * self.depth}, two a block")
        outputs: list[Tensor] = []

        def output_of(compute: Callable[[], Tensor]) -> Tensor:
            """Of the next layer."""
            old = reused[len(outputs)] if reused is not None else None
            if old is None:
                output = compute()
            elif shares is None:
                output = old  # cache (1): equation 5, an earlier step's output stands for the layer
            else:
                output = torch.lerp(old, compute(), shares[len(outputs)])  # cache (2): between both, for a router
            outputs.append(output)  # cache (3): equation 4, what the layer gave is kept
            return output

        # 1. Patches to tokens.
        height, width = (side // self.patch_size for side in hidden_states.shape[-2:])
        h: Tensor = self.pos_embed(hidden_states)  # (2B, 256, 1152)

        # 2. Blocks.
        for block in self.transformer_blocks:
            norm1, ff = block.norm1, block.ff
            emb = norm1.linear(norm1.silu(norm1.emb(timestep, class_labels, hidden_dtype=h.dtype)))  # (2B, 6912)
            shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = emb[:, None].chunk(6, dim=2)  # (2B, 1, 1152) each

            before = h
            attention = output_of(lambda: block.attn1(norm1.norm(before) * (1 + scale) + shift))  # noqa: B023
            h = gate * attention + h  # (2B, 256, 1152)

            after = h
            mlp = output_of(lambda: ff(block.norm3(after) * (1 + mlp_scale) + mlp_shift))  # noqa: B023
            h = mlp_gate * mlp + h  # (2B, 256, 1152)

        # 3. Tokens to patches.
        emb = self.transformer_blocks[0].norm1.emb(timestep, class_labels, hidden_dtype=h.dtype)  # (2B, 1152)
        shift, scale = self.proj_out_1(F.silu(emb))[:, None].chunk(2, dim=2)  # (2B, 1, 1152) each
        h = self.proj_out_2(self.norm_out(h) * (1 + scale) + shift)  # (2B, 256, 32)
        h = h.unflatten(1, (height, width)).unflatten(3, (self.patch_size, self.patch_size, self.out_channels))
        h = torch.einsum("nhwpqc->nchpwq", h)  # (2B, 8, 16, 2, 16, 2)
        h = h.flatten(4, 5).flatten(2, 3)  # (2B, 8, 32, 32)

        if reused is None:
            return Transformer2DModelOutput(sample=h) if return_dict else (h,)
        kept = tuple(outputs)
        return CachedTransformerOutput(sample=h, outputs=kept) if return_dict else (h, kept)
