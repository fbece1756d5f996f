"""The U-Net of Stable Video Diffusion, with DeepCache in its `forward`. Layers are paired as in the image U-Net's."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import diffusers
import torch
from torch import Tensor, nn

from .cache.attention import ShallowAttention
from .cached_unet import CachedUNetMixin, DownLayer, UpLayer, output_class

DOWN_BLOCKS = ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal")
UP_BLOCKS = ("CrossAttnUpBlockSpatioTemporal", "UpBlockSpatioTemporal")
UNetSpatioTemporalConditionOutput: Any = output_class(diffusers.UNetSpatioTemporalConditionModel)


@dataclass
class CachedVideoUNetOutput(UNetSpatioTemporalConditionOutput):
    """`sample` (B, F, C, H, W) as the parent's; `cached_feature` (B·F, C_m, H_m, W_m), what entered u_m from below.

    `shallow_feature` is the same at `keep_branch_id`. `attention` is what attention added, if `keep_attention`, in the
    layers d_1 … d_k and u_k … u_0, in this order, k being the shallower branch.
    """

    sample: Any = None
    cached_feature: Tensor | None = None
    shallow_feature: Tensor | None = None
    attention: tuple[Tensor, ...] | None = None


class Condition(NamedTuple):
    """What every layer gets besides its input."""

    emb: Tensor  # (B·F, 1280) time and micro-conditioning
    context: Tensor  # (B·F, 1, 1024) image embedding
    image_only_indicator: Tensor  # (B, F) zeros: these are videos


class UNetSpatioTemporalConditionModel(CachedUNetMixin, diffusers.UNetSpatioTemporalConditionModel):
    """diffusers' `UNetSpatioTemporalConditionModel` with DeepCache: same constructor, configuration and files."""

    frame_axis = 1
    supported_config: ClassVar = {"down_block_types": DOWN_BLOCKS, "up_block_types": UP_BLOCKS}

    # diffusers reads the parent's signature through this to load a configuration.
    @functools.wraps(diffusers.UNetSpatioTemporalConditionModel.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pair_layers()

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        encoder_hidden_states: Tensor,
        added_time_ids: Tensor,
        return_dict: bool = True,
        cache_branch_id: int | None = None,
        cached_feature: Tensor | None = None,
        keep_branch_id: int | None = None,
        cached_attention: Sequence[Tensor] | None = None,
        keep_attention: bool = False,
    ) -> CachedVideoUNetOutput | tuple[Tensor, ...]:
        """Predicts the noise of every frame. Shapes in the comments are Stable Video Diffusion's.

        Args:
            sample: (B, F, 8, H, W) noisy latents and the image's latents, for F frames.
            timestep: a number, or a tensor () or (B,).
            encoder_hidden_states: (B, 1, 1024) image embedding.
            added_time_ids: (B, 3) frames per second less one, motion bucket, noise added to the image.
            cache_branch_id: m, 0 to M − 1. None caches nothing, like the parent.
            cached_feature: what an earlier step cached at the same branch; makes this a retrieve step.
            keep_branch_id: a shallower branch at which a full or a retrieve step also caches.
            cached_attention: what attention added in an earlier step; added again instead of running attention.
            keep_attention: cache what attention adds in the layers up to the shallower branch.

        Returns:
            `CachedVideoUNetOutput`, or the tuple of its fields.

        Raises:
            ValueError: branch out of range, feature without branch, or no attention to cache.
        """
        m, retrieve = cache_branch_id, cached_feature is not None
        self.check_cache(m, cached_feature, keep_branch_id)
        shallow_branch = m if keep_branch_id is None else keep_branch_id
        shallow = self.shallow_attention(shallow_branch, cached_attention, keep_attention)

        # 1. Conditions.
        batch_size, num_frames = sample.shape[:2]
        condition = self._condition(sample, timestep, encoder_hidden_states, added_time_ids)

        # 2. Down.
        h = self.conv_in(sample.flatten(0, 1))  # d_0: (B·F, 320, H, W)
        skips = [h]
        for d in self.down_layers[: m if retrieve else None]:  # cache (1): a retrieve step runs d_1 … d_m only
            h = run_down(d, h, condition, shallow.at(len(skips)))
            skips.append(h)  # (B·F, 320, H, W) … (B·F, 1280, H/8, W/8)

        # 3. Middle.
        if not retrieve:
            h = self.mid_block(h, condition.emb, condition.context, condition.image_only_indicator)
        else:
            h = cached_feature  # cache (2): equation 5, the feature of an earlier step replaces all deeper layers

        # 4. Up.
        kept = kept_above = None
        while skips:
            skip = skips.pop()
            k = len(skips)
            if k == m:
                kept = h  # cache (3): equation 4, what enters u_m from below is cached
            elif k == keep_branch_id:
                kept_above = h  # cache (4): of two depths, the shallower is re-cached on the way up
            h = run_up(self.up_layers[k], h, skip, condition, shallow.at(k))

        # 5. Out.
        h = self.conv_out(self.conv_act(self.conv_norm_out(h)))  # (B·F, 4, H, W)
        h = h.unflatten(0, (batch_size, num_frames))  # (B, F, 4, H, W)

        output = CachedVideoUNetOutput(
            sample=h, cached_feature=kept, shallow_feature=kept_above, attention=shallow.added
        )
        return output if return_dict else output.to_tuple()

    def _condition(
        self, sample: Tensor, timestep: Tensor | float | int, context: Tensor, added_time_ids: Tensor
    ) -> Condition:
        """Time and micro-conditioning embeddings, all repeated for every frame."""
        batch_size, num_frames = sample.shape[:2]
        if not torch.is_tensor(timestep):
            integer, real = (
                (torch.int64, torch.float64) if sample.device.type != "mps" else (torch.int32, torch.float32)
            )
            timestep = torch.tensor(timestep, dtype=real if isinstance(timestep, float) else integer)
        timesteps = timestep.to(sample.device).expand(batch_size)  # (B,)
        emb = self.time_embedding(self.time_proj(timesteps).to(sample.dtype))  # (B, 1280)
        ids = self.add_time_proj(added_time_ids.flatten()).reshape(batch_size, -1)  # (B, 768)
        emb = emb + self.add_embedding(ids.to(emb.dtype))
        return Condition(
            emb.repeat_interleave(num_frames, dim=0),
            context.repeat_interleave(num_frames, dim=0),
            torch.zeros(batch_size, num_frames, dtype=sample.dtype, device=sample.device),
        )


def run_down(d: DownLayer, h: Tensor, condition: Condition, shallow: ShallowAttention | None = None) -> Tensor:
    """d_k for k ≥ 1."""
    if d.resnet is not None:
        h = d.resnet(h, condition.emb, image_only_indicator=condition.image_only_indicator)
    if d.downsampler is not None:
        h = d.downsampler(h)  # (B·F, C, H/2, W/2)
    return _attend(d.attention, h, condition, shallow)


def run_up(
    u: UpLayer, h: Tensor, skip: Tensor, condition: Condition, shallow: ShallowAttention | None = None
) -> Tensor:
    """u_k."""
    h = torch.cat([h, skip], dim=1)  # (B·F, C + C_k, H, W)
    h = u.resnet(h, condition.emb, image_only_indicator=condition.image_only_indicator)
    h = _attend(u.attention, h, condition, shallow)
    if u.upsampler is not None:
        h = u.upsampler(h)  # (B·F, C, 2H, 2W)
    return h


def _attend(attention: nn.Module | None, h: Tensor, condition: Condition, shallow: ShallowAttention | None) -> Tensor:
    """Attention within each frame, then over the frames at each position."""
    if attention is None:
        return h
    run = functools.partial(
        attention,
        encoder_hidden_states=condition.context,
        image_only_indicator=condition.image_only_indicator,
        return_dict=False,
    )
    return run(h)[0] if shallow is None else shallow(h, lambda h: run(h)[0])
