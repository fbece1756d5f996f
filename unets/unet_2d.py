"""The U-Net of DDPM, with DeepCache in its `forward`. Layers are paired with skips as in the other forks.

full step at branch m       d_0 … d_{M-1} → mid → u_{M-1} … u_0     caches what enters u_m from below
retrieve step at branch m   d_0 … d_m → the cached feature → u_m … u_0
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import diffusers
import torch
from torch import Tensor, nn

from .cached_unet import CachedUNetMixin, DownLayer, UpLayer, output_class

DOWN_BLOCKS = ("DownBlock2D", "AttnDownBlock2D")
UP_BLOCKS = ("UpBlock2D", "AttnUpBlock2D")
UNet2DOutput: Any = output_class(diffusers.UNet2DModel)


@dataclass
class CachedUNet2DOutput(UNet2DOutput):
    """`sample` (B, C, H, W) as the parent's; `cached_feature` (B, C_m, H_m, W_m), what entered u_m from below.

    `shallow_feature` is the same at `keep_branch_id`.
    """

    sample: Any = None
    cached_feature: Tensor | None = None
    shallow_feature: Tensor | None = None


class UNet2DModel(CachedUNetMixin, diffusers.UNet2DModel):
    """diffusers' `UNet2DModel` with DeepCache: same constructor, configuration, weights' names and files."""

    supported_config: ClassVar = {
        "down_block_types": DOWN_BLOCKS,
        "up_block_types": UP_BLOCKS,
        "time_embedding_type": ("positional",),
        "class_embed_type": (None,),
        "num_class_embeds": (None,),
        "center_input_sample": (False,),
        "downsample_type": ("conv",),
        "upsample_type": ("conv",),
    }

    # diffusers reads the parent's signature through this to load a configuration.
    @functools.wraps(diffusers.UNet2DModel.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pair_layers()

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
        cache_branch_id: int | None = None,
        cached_feature: Tensor | None = None,
        keep_branch_id: int | None = None,
    ) -> CachedUNet2DOutput | tuple[Tensor, ...]:
        """Predicts the noise. Shapes in the comments are those of the model for CIFAR-10.

        Args:
            sample: (B, 3, H, W) noisy images in the range that the model was trained on, [-1, 1] without noise.
            timestep: a number, or a tensor () or (B,).
            class_labels: not supported; no published model is class-conditional.
            cache_branch_id: m, 0 to M − 1. None caches nothing, like the parent.
            cached_feature: what an earlier step cached at the same branch; makes this a retrieve step.
            keep_branch_id: a shallower branch at which a full or a retrieve step also caches.

        Returns:
            `CachedUNet2DOutput`, or the tuple of its fields.

        Raises:
            ValueError: branch out of range, feature without branch, or class labels.
        """
        m, retrieve = cache_branch_id, cached_feature is not None
        self.check_cache(m, cached_feature, keep_branch_id)
        if class_labels is not None:
            raise ValueError("class_labels is not supported by this U-Net; use diffusers' own for it")

        # 1. Time.
        if not torch.is_tensor(timestep):
            timestep = torch.tensor(timestep)
        timesteps = timestep.to(sample.device).expand(len(sample))  # (B,)
        emb = self.time_embedding(self.time_proj(timesteps).to(self.dtype))  # (B, 512)

        # 2. Down.
        h: Any = self.conv_in(sample)  # d_0: (B, 128, 32, 32)
        skips = [h]
        for d in self.down_layers[: m if retrieve else None]:  # cache (1): a retrieve step runs d_1 … d_m only
            h = run_down(d, h, emb)
            skips.append(h)  # (B, 128, 32, 32) … (B, 256, 4, 4)

        # 3. Middle.
        # cache (2): equation 5, the feature of an earlier step replaces all deeper layers
        h = cached_feature if retrieve else self.mid_block(h, emb)  # (B, 256, 4, 4) on a full step

        # 4. Up.
        kept = kept_above = None
        while skips:
            skip = skips.pop()
            k = len(skips)
            if k == m:
                kept = h  # cache (3): equation 4, what enters u_m from below is cached
            elif k == keep_branch_id:
                kept_above = h  # cache (4): of two depths, the shallower is re-cached on the way up
            h = run_up(self.up_layers[k], h, skip, emb)

        # 5. Out.
        h = self.conv_out(self.conv_act(self.conv_norm_out(h)))  # (B, 3, 32, 32)

        output = CachedUNet2DOutput(sample=h, cached_feature=kept, shallow_feature=kept_above)
        return output if return_dict else output.to_tuple()


def run_down(d: DownLayer, h: Tensor, emb: Tensor) -> Tensor:
    """d_k for k ≥ 1."""
    if d.resnet is not None:
        h = d.resnet(h, emb)
    if d.downsampler is not None:
        h = d.downsampler(h)  # (B, C, H/2, W/2)
    return _attend(d.attention, h)


def run_up(u: UpLayer, h: Tensor, skip: Tensor, emb: Tensor) -> Tensor:
    """u_k."""
    h = torch.cat([h, skip], dim=1)  # (B, C + C_k, H, W)
    h = _attend(u.attention, u.resnet(h, emb))
    return h if u.upsampler is None else u.upsampler(h)  # (B, C, 2H, 2W)


def _attend(attention: nn.Module | None, h: Tensor) -> Tensor:
    """Self-attention over all positions."""
    return h if attention is None else attention(h)
