"""A ControlNet that can stop after the residuals that a retrieve step needs."""

from __future__ import annotations

import functools
from typing import Any

import diffusers
import torch
from torch import Tensor

from .cached_unet import down_layers, save_as_stock, share_weights_as
from .moved import ControlNetOutput
from .moved import MultiControlNetModel as StockMultiControlNetModel
from .unet_2d_condition import Condition, embedding, mask_bias, run_down


class ControlNetModel(diffusers.ControlNetModel):
    """diffusers' `ControlNetModel` with one more argument. Its layers are paired with the U-Net's skips."""

    # diffusers reads the parent's signature through this to load a configuration.
    @functools.wraps(diffusers.ControlNetModel.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        save_as_stock(self)

    @classmethod
    def sharing(cls, controlnet: diffusers.ControlNetModel) -> ControlNetModel:
        """A fork that shares the modules and weights of a stock ControlNet, which stays unchanged."""
        fork: ControlNetModel = share_weights_as(cls, controlnet)
        save_as_stock(fork)
        return fork

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        encoder_hidden_states: Tensor,
        controlnet_cond: Tensor,
        conditioning_scale: float = 1.0,
        class_labels: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        attention_mask: Tensor | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        guess_mode: bool = False,
        return_dict: bool = True,
        cache_branch_id: int | None = None,
    ) -> ControlNetOutput | tuple[list[Tensor], Tensor | None]:
        """Residuals for the U-Net's skips. Shapes in the comments are those of Stable Diffusion 1.5's ControlNets.

        Args:
            sample: (B, 4, H/8, W/8) noisy latents, scaled by the scheduler.
            controlnet_cond: (B, 3, H, W) conditioning image: edges, depth, a pose.
            cache_branch_id: m; if given, only the residuals of skips 0 … m are made, and none for the middle.
            others: as the parent's. `class_labels` is refused.

        Returns:
            `ControlNetOutput`, or the tuple of its fields.

        Raises:
            ValueError: an argument that is not supported.
        """
        m = cache_branch_id
        if class_labels is not None or self.class_embedding is not None:
            raise ValueError("class_labels is not supported by this ControlNet; use diffusers' own for it")

        # 1. Conditions.
        emb = embedding(self, sample, timestep, timestep_cond, added_cond_kwargs or {})  # (B, 1280)
        attention_bias = mask_bias(attention_mask, sample.dtype)
        condition = Condition(emb, encoder_hidden_states, attention_bias, None, cross_attention_kwargs, 1.0)
        if self.config.controlnet_conditioning_channel_order == "bgr":
            controlnet_cond = controlnet_cond.flip(1)

        # 2. Down.
        h = self.conv_in(sample)  # (B, 320, H/8, W/8)
        h = h + self.controlnet_cond_embedding(controlnet_cond)
        features = [h]
        for d in down_layers(self.down_blocks)[:m]:  # cache (1): layers deeper than m are not run
            h = run_down(d, h, condition)
            features.append(h)  # (B, 320, H/8, W/8) … (B, 1280, H/64, W/64)

        # 3. Middle.
        if m is None:
            h = self.mid_block(h, emb, **condition.for_attention)
            features.append(h)

        # 4. Residuals, in guess mode weaker for shallower skips.
        layers = [*self.controlnet_down_blocks, self.controlnet_mid_block]
        residuals = [layer(feature) for layer, feature in zip(layers, features, strict=False)]
        if guess_mode and not self.config.global_pool_conditions:
            scales = torch.logspace(-1, 0, len(layers), device=sample.device) * conditioning_scale  # 0.1 … 1
            residuals = [residual * scale for residual, scale in zip(residuals, scales, strict=False)]
        else:
            residuals = [residual * conditioning_scale for residual in residuals]
        if self.config.global_pool_conditions:
            residuals = [residual.mean((2, 3), keepdim=True) for residual in residuals]

        middle = residuals.pop() if m is None else None
        if return_dict:
            return ControlNetOutput(down_block_res_samples=tuple(residuals), mid_block_res_sample=middle)
        return residuals, middle


class MultiControlNetModel(StockMultiControlNetModel):
    """diffusers' `MultiControlNetModel` of forks: several ControlNets, their residuals summed."""

    def __init__(self, controlnets: list[ControlNetModel]) -> None:
        super().__init__(controlnets)
        save_as_stock(self)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        encoder_hidden_states: Tensor,
        controlnet_cond: list[Tensor],
        conditioning_scale: list[float],
        class_labels: Tensor | None = None,
        timestep_cond: Tensor | None = None,
        attention_mask: Tensor | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        guess_mode: bool = False,
        return_dict: bool = True,
        cache_branch_id: int | None = None,
    ) -> tuple[list[Tensor], Tensor | None]:
        """As `ControlNetModel.forward`, with a conditioning image and a scale for each net. Always a tuple."""
        total: list[Tensor] = []
        for net, image, scale in zip(self.nets, controlnet_cond, conditioning_scale, strict=True):
            residuals, middle = net(
                sample, timestep, encoder_hidden_states, image, scale, class_labels, timestep_cond, attention_mask,
                added_cond_kwargs, cross_attention_kwargs, guess_mode, return_dict=False,
                cache_branch_id=cache_branch_id,
            )  # fmt: skip
            residuals = residuals if middle is None else [*residuals, middle]
            total = [a + b for a, b in zip(total, residuals, strict=True)] if total else residuals
        return (total, None) if cache_branch_id is not None else (total[:-1], total[-1])
