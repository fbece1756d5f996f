"""The U-Net of AnimateDiff, with DeepCache in its `forward`: the image U-Net's layers with attention over frames."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import diffusers
import torch
from diffusers.utils import USE_PEFT_BACKEND, scale_lora_layers, unscale_lora_layers
from torch import Tensor

from .cache.attention import ShallowAttention
from .cached_unet import CachedUNetMixin, DownLayer, UpLayer
from .moved import UNetMotionOutput
from .unet_2d_condition import Condition as ImageCondition
from .unet_2d_condition import embedding, image_tokens_of, mask_bias, with_skip

DOWN_BLOCKS = ("CrossAttnDownBlockMotion", "DownBlockMotion")
UP_BLOCKS = ("CrossAttnUpBlockMotion", "UpBlockMotion")


@dataclass
class CachedMotionUNetOutput(UNetMotionOutput):
    """`sample` (B, C, F, H, W) as the parent's; `cached_feature` (B·F, C_m, H_m, W_m), what entered u_m from below.

    `shallow_feature` is the same at `keep_branch_id`. `attention` is what attention over space and frames added, if
    `keep_attention`, in the layers d_1 … d_k and u_k … u_0, in this order, k being the shallower branch.
    """

    sample: Any = None
    cached_feature: Tensor | None = None
    shallow_feature: Tensor | None = None
    attention: tuple[Tensor, ...] | None = None


class Condition(NamedTuple):
    """What every layer gets besides its input."""

    image: ImageCondition  # of (B·F) pictures
    num_frames: int


class UNetMotionModel(CachedUNetMixin, diffusers.UNetMotionModel):
    """diffusers' `UNetMotionModel` with DeepCache: same constructor, configuration, weights' names and files."""

    frame_axis = 2
    supported_config: ClassVar = {"down_block_types": DOWN_BLOCKS, "up_block_types": UP_BLOCKS}

    # diffusers reads the parent's signature through this to load a configuration.
    @functools.wraps(diffusers.UNetMotionModel.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pair_layers()

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        encoder_hidden_states: Tensor,
        timestep_cond: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        down_block_additional_residuals: tuple[Tensor, ...] | None = None,
        mid_block_additional_residual: Tensor | None = None,
        return_dict: bool = True,
        cache_branch_id: int | None = None,
        cached_feature: Tensor | None = None,
        keep_branch_id: int | None = None,
        cached_attention: Sequence[Tensor] | None = None,
        keep_attention: bool = False,
    ) -> CachedMotionUNetOutput | tuple[Tensor, ...]:
        """Predicts the noise of every frame. Shapes in the comments are those of a motion adapter on SD 1.5.

        Args:
            sample: (B, 4, F, H, W) noisy latents of F frames, scaled by the scheduler.
            timestep: a number, or a tensor () or (B,).
            encoder_hidden_states: (B, tokens, 768) text; (B·F, tokens, 768) from pipelines of later releases.
            down_block_additional_residuals, mid_block_additional_residual: a ControlNet's, (B·F, …) each. A retrieve
                step only needs those of skips 0 … m.
            cache_branch_id: m, 0 to M − 1. None caches nothing, like the parent.
            cached_feature: what an earlier step cached at the same branch; makes this a retrieve step.
            keep_branch_id: a shallower branch at which a full or a retrieve step also caches.
            cached_attention: what attention added in an earlier step; added again instead of running attention.
            keep_attention: cache what attention adds in the layers up to the shallower branch.
            others: as the parent's.

        Returns:
            `CachedMotionUNetOutput`, or the tuple of its fields.

        Raises:
            ValueError: branch out of range, feature without branch, no attention to cache, or a missing argument.
        """
        m, retrieve = cache_branch_id, cached_feature is not None
        self.check_cache(m, cached_feature, keep_branch_id)
        shallow_branch = m if keep_branch_id is None else keep_branch_id
        shallow = self.shallow_attention(shallow_branch, cached_attention, keep_attention)

        # 1. Conditions. If the downsamplers don't divide the size, each upsampler uses its skip's size.
        batch_size, num_frames = len(sample), sample.shape[2]
        condition = self._condition(
            sample, timestep, timestep_cond, encoder_hidden_states, attention_mask, cross_attention_kwargs,
            added_cond_kwargs,
        )  # fmt: skip
        uneven = any(side % 2**self.num_upsamplers for side in sample.shape[-2:])
        if USE_PEFT_BACKEND:
            scale_lora_layers(self, condition.image.lora_scale)

        # 2. Down.
        h = self.conv_in(sample.transpose(1, 2).flatten(0, 1))  # d_0: (B·F, 320, H, W)
        skips = [h]
        for d in self.down_layers[: m if retrieve else None]:  # cache (1): a retrieve step runs d_1 … d_m only
            h = run_down(d, h, condition, shallow.at(len(skips)))
            skips.append(h)  # (B·F, 320, H, W) … (B·F, 1280, H/8, W/8)
        if down_block_additional_residuals is not None:
            skips = [s + r for s, r in zip(skips, down_block_additional_residuals[: len(skips)], strict=True)]

        # 3. Middle.
        if retrieve:
            h = cached_feature  # cache (2): equation 5, the feature of an earlier step replaces all deeper layers
        else:
            if self.mid_block is not None:
                frames = {"num_frames": num_frames} if hasattr(self.mid_block, "motion_modules") else {}
                h = self.mid_block(h, condition.image.emb, **_for_attention(condition.image), **frames)
            if mid_block_additional_residual is not None:
                h = h + mid_block_additional_residual

        # 4. Up.
        kept = kept_above = None
        while skips:
            skip = skips.pop()
            k = len(skips)
            if k == m:
                kept = h  # cache (3): equation 4, what enters u_m from below is cached
            elif k == keep_branch_id:
                kept_above = h  # cache (4): of two depths, the shallower is re-cached on the way up
            if k in (m, keep_branch_id) and self.freeu:
                h = h.clone()  # FreeU modifies an up layer's input in place
            size = skips[-1].shape[2:] if uneven and skips else None
            h = run_up(self.up_layers[k], h, skip, condition, size, shallow.at(k))

        # 5. Out.
        if self.conv_norm_out is not None:
            h = self.conv_act(self.conv_norm_out(h))
        h = self.conv_out(h).unflatten(0, (batch_size, num_frames)).transpose(1, 2)  # (B, 4, F, H, W)
        if USE_PEFT_BACKEND:
            unscale_lora_layers(self, condition.image.lora_scale)

        output = CachedMotionUNetOutput(
            sample=h, cached_feature=kept, shallow_feature=kept_above, attention=shallow.added
        )
        return output if return_dict else output.to_tuple()

    def _condition(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        timestep_cond: Tensor | None,
        context: Tensor,
        attention_mask: Tensor | None,
        cross_attention_kwargs: dict[str, Any] | None,
        added_cond_kwargs: dict[str, Tensor] | None,
    ) -> Condition:
        """Time, size and image embeddings, all repeated for every frame; the mask as a bias."""
        added, num_frames = added_cond_kwargs or {}, sample.shape[2]
        emb = embedding(self, sample, timestep, timestep_cond, added).repeat_interleave(num_frames, dim=0)
        tokens = None if self.encoder_hid_proj is None else image_tokens_of(self, added)  # IP-Adapter
        if isinstance(tokens, Tensor):  # before diffusers 0.26
            context = torch.cat([context, tokens.to(context.dtype)], dim=1)
        if len(context) == len(sample):
            context = context.repeat_interleave(num_frames, dim=0)  # (B·F, tokens, 768)
        both: Any = context
        if tokens is not None and not isinstance(tokens, Tensor):
            both = (context, [one.repeat_interleave(num_frames, dim=0) for one in tokens])
        bias = mask_bias(attention_mask, sample.dtype)
        return Condition(ImageCondition.of(emb, both, bias, None, cross_attention_kwargs), num_frames)


def run_down(d: DownLayer, h: Tensor, condition: Condition, shallow: ShallowAttention | None = None) -> Tensor:
    """d_k for k ≥ 1."""
    for_layers = condition.image.for_layers
    if d.resnet is not None:
        h = d.resnet(h, condition.image.emb, **for_layers)
    if d.downsampler is not None:
        h = d.downsampler(h, **for_layers)  # (B·F, C, H/2, W/2)
    return _attend(d, h, condition, shallow)


def run_up(
    u: UpLayer,
    h: Tensor,
    skip: Tensor,
    condition: Condition,
    size: torch.Size | None,
    shallow: ShallowAttention | None = None,
) -> Tensor:
    """u_k; `size` is the upsampler's output size where it isn't twice the input's."""
    h = with_skip(u, h, skip)  # (B·F, C + C_k, H, W)
    h = u.resnet(h, condition.image.emb, **condition.image.for_layers)
    h = _attend(u, h, condition, shallow)
    if u.upsampler is not None:
        h = u.upsampler(h, size, **condition.image.for_layers)  # (B·F, C, 2H, 2W)
    return h


def _attend(layer: DownLayer | UpLayer, h: Tensor, condition: Condition, shallow: ShallowAttention | None) -> Tensor:
    """Attention within each frame, if the layer has it, then over the frames at each position."""

    def run(h: Tensor) -> Tensor:
        if layer.attention is not None:
            h = layer.attention(h, **_for_attention(condition.image), return_dict=False)[0]
        if layer.motion is not None:
            output = layer.motion(h, num_frames=condition.num_frames)
            h = output if isinstance(output, Tensor) else output[0]
        return h

    if layer.attention is None and layer.motion is None:
        return h
    return run(h) if shallow is None else shallow(h, run)


def _for_attention(condition: ImageCondition) -> dict[str, Any]:
    """Attention's arguments without the text mask: 0.24.0's middle block takes none, and no pipeline passes one."""
    return {name: value for name, value in condition.for_attention.items() if name != "encoder_attention_mask"}
