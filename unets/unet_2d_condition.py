"""The U-Net of Stable Diffusion 1.x, 2.x and XL, LDM-4-G and BK-SDM, with DeepCache in its `forward`.

A U-Net with M skip connections is M pairs of layers: down layer d_k makes skip s_k, up layer u_k consumes it. d_0 is
`conv_in`; every later d_k is a resnet with its attention, or a downsampler. u_k is a resnet with its attention,
followed by its block's upsampler if it is the block's last.

    full step at branch m       d_0 … d_{M-1} → mid → u_{M-1} … u_0     keeps what enters u_m from below
    retrieve step at branch m   d_0 … d_m → the kept feature → u_m … u_0
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import diffusers
import torch
from diffusers.models.unet_2d_condition import UNet2DConditionOutput
from diffusers.utils import USE_PEFT_BACKEND, scale_lora_layers, unscale_lora_layers
from diffusers.utils.torch_utils import apply_freeu
from torch import Tensor, nn

DOWN_BLOCKS = ("CrossAttnDownBlock2D", "DownBlock2D")
MID_BLOCKS = ("UNetMidBlock2DCrossAttn", None)
UP_BLOCKS = ("CrossAttnUpBlock2D", "UpBlock2D")


@dataclass
class CachedUNetOutput(UNet2DConditionOutput):
    """`sample` (B, C, H, W) as the parent's; `cached_feature` (B, C_m, H_m, W_m), what entered u_m from below.

    Without a branch nothing is kept: `cached_feature` is None, and left out of the tuple, as in the parent's output.
    """

    sample: Any = None
    cached_feature: Any = None


class Condition(NamedTuple):
    """What every layer is told besides its input."""

    emb: Tensor  # (B, 1280) time embedding
    context: Tensor  # (B, tokens, 768) text, and image tokens of an IP-Adapter
    attention_mask: Tensor | None  # (B, 1, tokens) bias
    encoder_attention_mask: Tensor | None  # (B, 1, tokens) bias
    cross_attention_kwargs: dict[str, Any] | None
    lora_scale: float

    @property
    def for_attention(self) -> dict[str, Any]:
        """The part of it that the parent's attention and middle block take, under their names."""
        return {
            "encoder_hidden_states": self.context,
            "attention_mask": self.attention_mask,
            "encoder_attention_mask": self.encoder_attention_mask,
            "cross_attention_kwargs": self.cross_attention_kwargs,
        }


class DownLayer(NamedTuple):
    """d_k for k ≥ 1: either a resnet, with attention or without, or a downsampler."""

    resnet: nn.Module | None
    attention: nn.Module | None
    downsampler: nn.Module | None

    def __call__(self, h: Tensor, condition: Condition) -> Tensor:
        if self.resnet is not None:
            h = self.resnet(h, condition.emb, scale=condition.lora_scale)
        if self.downsampler is not None:
            h = self.downsampler(h, scale=condition.lora_scale)  # (B, C, H/2, W/2)
        return _attend(self.attention, h, condition)


class UpLayer(NamedTuple):
    """u_k: resnet over the main branch and the skip, attention if there is any, upsampler if its block ends here."""

    block: nn.Module  # holds FreeU's factors
    resnet: nn.Module
    attention: nn.Module | None
    upsampler: nn.Module | None

    def __call__(self, h: Tensor, skip: Tensor, condition: Condition, size: torch.Size | None) -> Tensor:
        factors = {name: getattr(self.block, name, None) for name in ("s1", "s2", "b1", "b2")}
        if all(factors.values()):
            h, skip = apply_freeu(self.block.resolution_idx, h, skip, **factors)  # writes into h
        h = torch.cat([h, skip], dim=1)  # (B, C + C_k, H, W)
        h = self.resnet(h, condition.emb, scale=condition.lora_scale)
        h = _attend(self.attention, h, condition)
        if self.upsampler is not None:
            h = self.upsampler(h, size, scale=condition.lora_scale)  # (B, C, 2H, 2W)
        return h


def _attend(attention: nn.Module | None, h: Tensor, condition: Condition) -> Tensor:
    return h if attention is None else attention(h, **condition.for_attention, return_dict=False)[0]


class UNet2DConditionModel(diffusers.UNet2DConditionModel):
    """diffusers' `UNet2DConditionModel` with DeepCache: same constructor, configuration, weights' names and files."""

    # diffusers reads the parent's signature through this to load a configuration.
    @functools.wraps(diffusers.UNet2DConditionModel.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._refuse_what_is_not_written_out()

    @classmethod
    def sharing(cls, unet: diffusers.UNet2DConditionModel) -> UNet2DConditionModel:
        """A fork over the very modules and weights of a stock U-Net, which itself stays as it is.

        Raises:
            ValueError: if the U-Net has parts that the fork does not write out, or is offloaded by accelerate.
        """
        if isinstance(unet, cls):
            return unet
        if hasattr(unet, "_hf_hook"):
            raise ValueError("the U-Net is offloaded; build the pipeline first and offload that")
        fork = copy.copy(unet)
        fork.__class__ = cls
        fork._refuse_what_is_not_written_out()
        return fork

    @property
    def num_skip_branches(self) -> int:
        """M; `cache_branch_id` is 0 to M − 1."""
        return sum(len(block.resnets) for block in self.up_blocks)

    @property
    def freeu(self) -> bool:
        """Whether FreeU is on, which writes into what up layers are given."""
        return bool(getattr(self.up_blocks[0], "b1", None))

    @property
    def down_layers(self) -> list[DownLayer]:
        """d_1 … d_{M-1}: views of the parent's blocks, registered nowhere, so the weights' names stay the parent's."""
        layers = []
        for block in self.down_blocks:
            attentions = getattr(block, "attentions", [None] * len(block.resnets))
            layers += [DownLayer(r, a, None) for r, a in zip(block.resnets, attentions, strict=True)]
            layers += [DownLayer(None, None, downsampler) for downsampler in block.downsamplers or ()]
        return layers

    @property
    def up_layers(self) -> list[UpLayer]:
        """u_0 … u_{M-1}: the last to run comes first."""
        layers = []
        for block in self.up_blocks:
            attentions = getattr(block, "attentions", [None] * len(block.resnets))
            upsamplers = [None] * (len(block.resnets) - 1) + list(block.upsamplers or [None])
            layers += [UpLayer(block, *parts) for parts in zip(block.resnets, attentions, upsamplers, strict=True)]
        return layers[::-1]

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        encoder_hidden_states: Tensor,
        class_labels: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        down_block_additional_residuals: tuple[Tensor, ...] | None = None,
        mid_block_additional_residual: Tensor | None = None,
        down_intrablock_additional_residuals: tuple[Tensor, ...] | None = None,
        encoder_attention_mask: Tensor | None = None,
        return_dict: bool = True,
        cache_branch_id: int | None = None,
        cached_feature: Tensor | None = None,
    ) -> CachedUNetOutput | tuple[Tensor, ...]:
        """Predicts the noise. Shapes in the comments are Stable Diffusion 1.5's.

        Args:
            sample: (B, 4, H, W) noisy latents, scaled by the scheduler.
            timestep: a number, or a tensor () or (B,).
            encoder_hidden_states: (B, tokens, 768) text.
            down_block_additional_residuals, mid_block_additional_residual: a ControlNet's, one for each skip and one
                for the middle. A retrieve step uses those of skips 0 … m alone, and needs no others.
            cache_branch_id: m, 0 to M − 1. None keeps nothing and is the parent's behaviour.
            cached_feature: what an earlier full step at the same branch kept; given, this is a retrieve step.
            others: as the parent's. `class_labels` and `down_intrablock_additional_residuals` are refused.

        Returns:
            `CachedUNetOutput`, or the tuple of its fields.

        Raises:
            ValueError: branch out of range, feature without branch, an argument or a layout that is not supported.
        """
        m, retrieve = cache_branch_id, cached_feature is not None
        self._refuse("class_labels", class_labels)
        self._refuse("down_intrablock_additional_residuals", down_intrablock_additional_residuals)
        if m is not None:
            self.check_branch(m)
        elif retrieve:
            raise ValueError("cached_feature needs the cache_branch_id at which it was kept")
        if not retrieve and (down_block_additional_residuals is None) != (mid_block_additional_residual is None):
            raise ValueError("a ControlNet's down_block_ and mid_block_additional_residual(s) are needed together")

        # 1. Conditions. A size that the downsamplers don't divide makes each upsampler aim for its skip's size.
        condition = self._condition(
            sample, timestep, timestep_cond, encoder_hidden_states, attention_mask, encoder_attention_mask,
            cross_attention_kwargs, added_cond_kwargs,
        )  # fmt: skip
        uneven = any(side % 2**self.num_upsamplers for side in sample.shape[-2:])
        if USE_PEFT_BACKEND:
            scale_lora_layers(self, condition.lora_scale)

        # 2. Down.
        h = self.conv_in(sample)  # d_0: (B, 320, H, W)
        skips = [h]
        for d in self.down_layers[: m if retrieve else None]:  # cache (1): a retrieve step runs d_1 … d_m only
            h = d(h, condition)
            skips.append(h)  # (B, 320, H, W) … (B, 1280, H/8, W/8)
        if down_block_additional_residuals is not None:
            skips = [s + r for s, r in zip(skips, down_block_additional_residuals[: len(skips)], strict=True)]

        # 3. Middle.
        if retrieve:
            h = cached_feature  # cache (2): equation 5, the feature of an earlier step stands for all that is deeper
        else:
            if self.mid_block is not None:
                h = self.mid_block(h, condition.emb, **condition.for_attention)  # (B, 1280, H/8, W/8)
            if mid_block_additional_residual is not None:
                h = h + mid_block_additional_residual

        # 4. Up.
        kept = None
        up_layers = self.up_layers
        while skips:
            skip = skips.pop()
            k = len(skips)
            if k == m:
                kept = h  # cache (3): equation 4, what enters u_m from below is kept
                h = h.clone() if self.freeu else h  # FreeU writes into what an up layer is given
            h = up_layers[k](h, skip, condition, size=skips[-1].shape[2:] if uneven and skips else None)

        # 5. Out.
        if self.conv_norm_out is not None:
            h = self.conv_act(self.conv_norm_out(h))
        h = self.conv_out(h)  # (B, 4, H, W)
        if USE_PEFT_BACKEND:
            unscale_lora_layers(self, condition.lora_scale)

        output = CachedUNetOutput(sample=h, cached_feature=kept)
        return output if return_dict else output.to_tuple()

    def _condition(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        timestep_cond: Tensor | None,
        context: Tensor,
        attention_mask: Tensor | None,
        encoder_attention_mask: Tensor | None,
        cross_attention_kwargs: dict[str, Any] | None,
        added_cond_kwargs: dict[str, Tensor] | None,
    ) -> Condition:
        """Time, guidance-scale, size and image embeddings; masks as biases."""
        if not torch.is_tensor(timestep):
            integer, real = (
                (torch.int64, torch.float64) if sample.device.type != "mps" else (torch.int32, torch.float32)
            )
            timestep = torch.tensor(timestep, dtype=real if isinstance(timestep, float) else integer)
        timesteps = timestep.to(sample.device).expand(len(sample))  # (B,)
        emb = self.time_embedding(self.time_proj(timesteps).to(sample.dtype), timestep_cond)  # (B, 1280)

        added = added_cond_kwargs or {}
        if self.config.addition_embed_type == "text_time":  # SDXL: pooled text, and six sizes or five and a score
            text_embeds, time_ids = _required(added, "text_embeds"), _required(added, "time_ids")
            sizes = self.add_time_proj(time_ids.flatten()).reshape(len(text_embeds), -1)  # (B, 1536)
            emb = emb + self.add_embedding(torch.cat([text_embeds, sizes], dim=-1).to(emb.dtype))
        if self.encoder_hid_proj is not None:  # IP-Adapter
            image_tokens = self.encoder_hid_proj(_required(added, "image_embeds")).to(context.dtype)  # (B, 4, 768)
            context = torch.cat([context, image_tokens], dim=1)

        def bias(mask: Tensor | None) -> Tensor | None:
            return None if mask is None else ((1 - mask.to(sample.dtype)) * -10000.0)[:, None]  # (B, 1, tokens)

        lora_scale = (cross_attention_kwargs or {}).get("scale", 1.0)
        return Condition(
            emb, context, bias(attention_mask), bias(encoder_attention_mask), cross_attention_kwargs, lora_scale
        )

    def check_branch(self, branch: int) -> None:
        """Raises ValueError if there is no such skip branch."""
        if not 0 <= branch < self.num_skip_branches:
            raise ValueError(
                f"cache_branch_id is {branch}; this U-Net has the skip branches 0 to {self.num_skip_branches - 1}"
            )

    @staticmethod
    def _refuse(name: str, value: Any) -> None:
        if value is not None:
            raise ValueError(f"{name} is not supported by this U-Net; use diffusers' own for it")

    def _refuse_what_is_not_written_out(self) -> None:
        """Raises ValueError naming the first part of the configuration that `forward` does not write out."""
        config = self.config
        choices = {
            "mid_block_type": ([config.mid_block_type], MID_BLOCKS),
            "down_block_types": (config.down_block_types, DOWN_BLOCKS),
            "up_block_types": (config.up_block_types, UP_BLOCKS),
            "addition_embed_type": ([config.addition_embed_type], (None, "text_time")),
            "encoder_hid_dim_type": ([config.encoder_hid_dim_type], (None, "ip_image_proj")),
            "class_embed_type": ([config.class_embed_type], (None,)),
            "num_class_embeds": ([config.num_class_embeds], (None,)),
            "time_embedding_act_fn": ([config.time_embedding_act_fn], (None,)),
            "center_input_sample": ([config.center_input_sample], (False,)),
            "attention_type": ([config.attention_type], ("default",)),
        }
        for name, (values, written_out) in choices.items():
            for value in values:
                if value not in written_out:
                    raise ValueError(f"{name} {value!r} is not supported by this U-Net; use diffusers' own for it")


def _required(added_cond_kwargs: dict[str, Tensor], name: str) -> Tensor:
    if name not in added_cond_kwargs:
        raise ValueError(f"this U-Net needs {name} in added_cond_kwargs")
    return added_cond_kwargs[name]
