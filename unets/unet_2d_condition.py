"""The U-Net of Stable Diffusion 1.x, 2.x and XL, LDM-4-G and BK-SDM, with DeepCache in its `forward`.

A U-Net with M skip connections is M pairs of layers: down layer d_k makes skip s_k, up layer u_k consumes it. d_0 is
`conv_in`; every later d_k is a resnet with its attention, or a downsampler. u_k is a resnet with its attention,
followed by its block's upsampler if it is the block's last.

    full step at branch m       d_0 … d_{M-1} → mid → u_{M-1} … u_0     caches what enters u_m from below
    retrieve step at branch m   d_0 … d_m → the cached feature → u_m … u_0

A step can also cache at a shallower branch, and what attention adds in the layers up to that branch.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, ClassVar, NamedTuple

import diffusers
import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.utils import USE_PEFT_BACKEND, scale_lora_layers, unscale_lora_layers
from diffusers.utils.torch_utils import apply_freeu
from torch import Tensor, nn

from .cache.attention import ShallowAttention
from .cached_unet import CachedUNetMixin, DownLayer, UpLayer, adapted_layers, output_class

DOWN_BLOCKS = ("CrossAttnDownBlock2D", "DownBlock2D")
MID_BLOCKS = ("UNetMidBlock2DCrossAttn", None)
UP_BLOCKS = ("CrossAttnUpBlock2D", "UpBlock2D")
# Before diffusers 0.27, every layer takes a LoRA's scale.
LAYERS_TAKE_SCALE = "scale" in signature(ResnetBlock2D.forward).parameters
UNet2DConditionOutput: Any = output_class(diffusers.UNet2DConditionModel)


@dataclass
class CachedUNetOutput(UNet2DConditionOutput):
    """`sample` (B, C, H, W) as the parent's; `cached_feature` (B, C_m, H_m, W_m), what entered u_m from below.

    `shallow_feature` is the same at `keep_branch_id`. `attention` is what attention added, if `keep_attention`, in the
    layers d_1 … d_k and u_k … u_0, in this order, k being the shallower branch. Without a branch nothing is cached.
    The tuple leaves out fields that are None, as the parent's does.
    """

    sample: Any = None
    cached_feature: Tensor | None = None
    shallow_feature: Tensor | None = None
    attention: tuple[Tensor, ...] | None = None


class Condition(NamedTuple):
    """What every layer gets besides its input."""

    emb: Tensor  # (B, 1280) time embedding
    context: Any  # (B, tokens, 768) text, and image tokens of an IP-Adapter
    attention_mask: Tensor | None  # (B, 1, tokens) bias
    encoder_attention_mask: Tensor | None  # (B, 1, tokens) bias
    cross_attention_kwargs: dict[str, Any] | None
    lora_scale: float

    @classmethod
    def of(
        cls,
        emb: Tensor,
        context: Any,
        attention_mask: Tensor | None,
        encoder_attention_mask: Tensor | None,
        cross_attention_kwargs: dict[str, Any] | None,
    ) -> Condition:
        """Takes a LoRA's scale out of attention's arguments, which don't include it from diffusers 0.27 on."""
        lora_scale = (cross_attention_kwargs or {}).get("scale", 1.0)
        if cross_attention_kwargs is not None and not LAYERS_TAKE_SCALE:
            cross_attention_kwargs = {name: v for name, v in cross_attention_kwargs.items() if name != "scale"}
        return cls(emb, context, attention_mask, encoder_attention_mask, cross_attention_kwargs, lora_scale)

    @property
    def for_layers(self) -> dict[str, Any]:
        """Keyword arguments of resnets, downsamplers and upsamplers."""
        return {"scale": self.lora_scale} if LAYERS_TAKE_SCALE else {}

    @property
    def for_attention(self) -> dict[str, Any]:
        """Keyword arguments of the parent's attention and middle block."""
        return {
            "encoder_hidden_states": self.context,
            "attention_mask": self.attention_mask,
            "encoder_attention_mask": self.encoder_attention_mask,
            "cross_attention_kwargs": self.cross_attention_kwargs,
        }


def run_down(d: DownLayer, h: Tensor, condition: Condition, shallow: ShallowAttention | None = None) -> Tensor:
    """d_k for k ≥ 1, of a U-Net or a ControlNet."""
    if d.resnet is not None:
        h = d.resnet(h, condition.emb, **condition.for_layers)
    if d.downsampler is not None:
        h = d.downsampler(h, **condition.for_layers)  # (B, C, H/2, W/2)
    return _attend(d.attention, h, condition, shallow)


def run_up(
    u: UpLayer,
    h: Tensor,
    skip: Tensor,
    condition: Condition,
    size: torch.Size | None,
    shallow: ShallowAttention | None = None,
) -> Tensor:
    """u_k; `size` is the upsampler's output size where it isn't twice the input's."""
    h = with_skip(u, h, skip)  # (B, C + C_k, H, W)
    h = u.resnet(h, condition.emb, **condition.for_layers)
    h = _attend(u.attention, h, condition, shallow)
    if u.upsampler is not None:
        h = u.upsampler(h, size, **condition.for_layers)  # (B, C, 2H, 2W)
    return h


def with_skip(u: UpLayer, h: Tensor, skip: Tensor) -> Tensor:
    """The input of u_k's resnet (B, C + C_k, H, W): the main branch and the skip, after FreeU if that is on."""
    factors = {name: getattr(u.block, name, None) for name in ("s1", "s2", "b1", "b2")}  # FreeU's
    if all(factors.values()):
        h, skip = apply_freeu(u.block.resolution_idx, h, skip, **factors)  # modifies h in place
    return torch.cat([h, skip], dim=1)


def _attend(attention: nn.Module | None, h: Tensor, condition: Condition, shallow: ShallowAttention | None) -> Tensor:
    if attention is None:
        return h
    run = functools.partial(attention, **condition.for_attention, return_dict=False)
    return run(h)[0] if shallow is None else shallow(h, lambda h: run(h)[0])


class UNet2DConditionModel(CachedUNetMixin, diffusers.UNet2DConditionModel):
    """diffusers' `UNet2DConditionModel` with DeepCache: same constructor, configuration, weights' names and files."""

    supported_config: ClassVar = {
        "mid_block_type": MID_BLOCKS,
        "down_block_types": DOWN_BLOCKS,
        "up_block_types": UP_BLOCKS,
        "addition_embed_type": (None, "text_time"),
        "encoder_hid_dim_type": (None, "ip_image_proj", "text_proj"),
        "time_embedding_act_fn": (None,),
        "center_input_sample": (False,),
        "attention_type": ("default",),
    }

    # diffusers reads the parent's signature through this to load a configuration.
    @functools.wraps(diffusers.UNet2DConditionModel.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pair_layers()

    def pair_layers(self) -> None:
        """Also finds where a T2I-Adapter's features are added."""
        super().pair_layers()
        self.adapted_layers = adapted_layers(self.down_blocks)

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
        keep_branch_id: int | None = None,
        cached_attention: Sequence[Tensor] | None = None,
        keep_attention: bool = False,
    ) -> CachedUNetOutput | tuple[Tensor, ...]:
        """Predicts the noise. Shapes in the comments are Stable Diffusion 1.5's.

        Args:
            sample: (B, 4, H, W) noisy latents, scaled by the scheduler.
            timestep: a number, or a tensor () or (B,).
            encoder_hidden_states: (B, tokens, 768) text.
            class_labels: (B,) for a U-Net with a class embedding, such as the noise level of the ×4 upscaler.
            down_block_additional_residuals, mid_block_additional_residual: a ControlNet's, one for each skip and one
                for the middle. A retrieve step only needs those of skips 0 … m.
            down_intrablock_additional_residuals: a T2I-Adapter's features, one for each down block, and for SDXL one
                more for the middle. A retrieve step uses those of the layers that it runs.
            cache_branch_id: m, 0 to M − 1. None caches nothing, like the parent.
            cached_feature: what an earlier step cached at the same branch; makes this a retrieve step.
            keep_branch_id: a shallower branch at which a full or a retrieve step also caches.
            cached_attention: what attention added in an earlier step; added again instead of running attention.
            keep_attention: cache what attention adds in the layers up to the shallower branch.
            others: as the parent's.

        Returns:
            `CachedUNetOutput`, or the tuple of its fields.

        Raises:
            ValueError: branch out of range, feature without branch, no attention to cache, or a missing or unsupported
                argument.
        """
        m, retrieve = cache_branch_id, cached_feature is not None
        self.check_cache(m, cached_feature, keep_branch_id)
        shallow_branch = m if keep_branch_id is None else keep_branch_id
        shallow = self.shallow_attention(shallow_branch, cached_attention, keep_attention)
        adapter = down_intrablock_additional_residuals or ()
        if not retrieve and (down_block_additional_residuals is None) != (mid_block_additional_residual is None):
            raise ValueError("a ControlNet's down_block_ and mid_block_additional_residual(s) must be given together")

        # 1. Conditions. If the downsamplers don't divide the size, each upsampler uses its skip's size.
        condition = self._condition(
            sample, timestep, timestep_cond, encoder_hidden_states, attention_mask, encoder_attention_mask,
            cross_attention_kwargs, added_cond_kwargs, class_labels,
        )  # fmt: skip
        uneven = any(side % 2**self.num_upsamplers for side in sample.shape[-2:])
        if USE_PEFT_BACKEND:
            scale_lora_layers(self, condition.lora_scale)

        # 2. Down.
        h = self.conv_in(sample)  # d_0: (B, 320, H, W)
        skips = [h]
        for d in self.down_layers[: m if retrieve else None]:  # cache (1): a retrieve step runs d_1 … d_m only
            h = run_down(d, h, condition, shallow.at(len(skips)))
            block = self.adapted_layers.get(len(skips))
            if block is not None and block < len(adapter):
                h = h + adapter[block]
            skips.append(h)  # (B, 320, H, W) … (B, 1280, H/8, W/8)
        if down_block_additional_residuals is not None:
            skips = [s + r for s, r in zip(skips, down_block_additional_residuals[: len(skips)], strict=True)]

        # 3. Middle.
        if retrieve:
            h = cached_feature  # cache (2): equation 5, the feature of an earlier step replaces all deeper layers
        else:
            if self.mid_block is not None:
                h = self.mid_block(h, condition.emb, **condition.for_attention)  # (B, 1280, H/8, W/8)
                left = adapter[len(self.down_blocks) :]
                if left and left[0].shape == h.shape:  # SDXL's adapters
                    h = h + left[0]
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
        h = self.conv_out(h)  # (B, 4, H, W)
        if USE_PEFT_BACKEND:
            unscale_lora_layers(self, condition.lora_scale)

        output = CachedUNetOutput(sample=h, cached_feature=kept, shallow_feature=kept_above, attention=shallow.added)
        return output if return_dict else output.to_tuple()

    def _condition(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        timestep_cond: Tensor | None,
        context: Any,
        attention_mask: Tensor | None,
        encoder_attention_mask: Tensor | None,
        cross_attention_kwargs: dict[str, Any] | None,
        added_cond_kwargs: dict[str, Tensor] | None,
        class_labels: Tensor | None,
    ) -> Condition:
        """Time, guidance-scale, size, class and image embeddings; masks as biases."""
        added = added_cond_kwargs or {}
        emb = embedding(self, sample, timestep, timestep_cond, added, class_labels)  # (B, 1280)
        if self.encoder_hid_proj is not None and self.config.encoder_hid_dim_type == "text_proj":
            context = self.encoder_hid_proj(context)
        elif self.encoder_hid_proj is not None:  # IP-Adapter
            if getattr(self, "text_encoder_hid_proj", None) is not None:  # Kolors', besides the adapter's
                context = self.text_encoder_hid_proj(context)
            image_tokens = image_tokens_of(self, added)
            if isinstance(image_tokens, Tensor):  # (B, 4, 768)
                context = torch.cat([context, image_tokens.to(context.dtype)], dim=1)
            else:  # there can be several adapters; attention separates them itself
                context = (context, image_tokens)
        bias, encoder_bias = mask_bias(attention_mask, sample.dtype), mask_bias(encoder_attention_mask, sample.dtype)
        return Condition.of(emb, context, bias, encoder_bias, cross_attention_kwargs)


def embedding(
    model: Any,
    sample: Tensor,
    timestep: Tensor | float | int,
    timestep_cond: Tensor | None,
    added_cond_kwargs: dict[str, Tensor],
    class_labels: Tensor | None = None,
) -> Tensor:
    """Time embedding (B, 1280) of a U-Net or a ControlNet, plus class and, for SDXL, sizes and pooled text."""
    if not torch.is_tensor(timestep):
        integer, real = (torch.int64, torch.float64) if sample.device.type != "mps" else (torch.int32, torch.float32)
        timestep = torch.tensor(timestep, dtype=real if isinstance(timestep, float) else integer)
    timesteps = timestep.to(sample.device).expand(len(sample))  # (B,)
    emb = model.time_embedding(model.time_proj(timesteps).to(sample.dtype), timestep_cond)
    class_embedding = getattr(model, "class_embedding", None)
    if (class_embedding is None) != (class_labels is None):
        raise ValueError(
            "class_labels are needed by this U-Net, which has a class embedding"
            if class_labels is None
            else "class_labels are given, but this U-Net has no class embedding; leave them out"
        )
    if class_embedding is not None and class_labels is not None:
        if model.config.class_embed_type == "timestep":
            class_labels = model.time_proj(class_labels).to(sample.dtype)
        of_class = class_embedding(class_labels).to(sample.dtype)  # (B, 1280)
        emb = torch.cat([emb, of_class], dim=-1) if model.config.class_embeddings_concat else emb + of_class
    if model.config.get("addition_embed_type") == "text_time":  # SDXL: pooled text, and six sizes or five and a score
        text_embeds = _required(added_cond_kwargs, "text_embeds")
        time_ids = _required(added_cond_kwargs, "time_ids")
        sizes = model.add_time_proj(time_ids.flatten()).reshape(len(text_embeds), -1)  # (B, 1536)
        emb = emb + model.add_embedding(torch.cat([text_embeds, sizes], dim=-1).to(emb.dtype))
    return emb


def image_tokens_of(model: Any, added_cond_kwargs: dict[str, Any]) -> Any:
    """An IP-Adapter's tokens (B, 4, 768), or from diffusers 0.26 on a list of them, (B, images, 4, 768) each."""
    return model.encoder_hid_proj(_required(added_cond_kwargs, "image_embeds"))


def mask_bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask (B, tokens), 1 to keep, as a bias on attention's scores (B, 1, tokens)."""
    return None if mask is None else ((1 - mask.to(dtype)) * -10000.0)[:, None]


def _required(added_cond_kwargs: dict[str, Tensor], name: str) -> Tensor:
    if name not in added_cond_kwargs:
        raise ValueError(f"this U-Net needs {name} in added_cond_kwargs")
    return added_cond_kwargs[name]
