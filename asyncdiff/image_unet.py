"""The U-Net of Stable Diffusion and SDXL, of which a process runs its part (`unets/unet_2d_condition.py` in parts)."""

from __future__ import annotations

from typing import Any

from diffusers.utils import USE_PEFT_BACKEND, scale_lora_layers, unscale_lora_layers
from torch import Tensor

from unets.unet_2d_condition import CachedUNetOutput, Condition, UNet2DConditionModel, run_down, run_up

from .refusals import refuse
from .run import AsyncRun, Outputs


class PartedUNet2DConditionModel(UNet2DConditionModel):
    """The fork over the same weights, for one run, in whose denoising loop it is called as the fork is."""

    run: AsyncRun

    def forward(  # type: ignore[override]  # the rest of the fork's arguments is refused
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        timestep_cond: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        **others: Any,
    ) -> CachedUNetOutput:
        """Predicts the noise. Arguments as the fork's; those of ControlNets and of DeepCache are refused."""
        refuse(others)
        if self.freeu:
            raise ValueError("FreeU writes into what other parts of the U-Net read; switch it off to run it in parts")

        def run_part(part: range, timestep: Tensor, outputs: Outputs) -> Outputs:
            condition = self._condition(
                sample, timestep, timestep_cond, encoder_hidden_states, None, None, cross_attention_kwargs,
                added_cond_kwargs, None,
            )  # fmt: skip
            if USE_PEFT_BACKEND:
                scale_lora_layers(self, condition.lora_scale)
            made = self.run_layers(part, sample, condition, outputs)
            if USE_PEFT_BACKEND:
                unscale_lora_layers(self, condition.lora_scale)
            return made

        return CachedUNetOutput(sample=self.run.noise(timestep, run_part))

    def run_layers(self, part: range, sample: Tensor, condition: Condition, outputs: Outputs) -> Outputs:
        """The forward of one part, given outputs of the parts before it. Shapes are Stable Diffusion 1.5's.

        Returns:
            The outputs that other parts may read: of its down layers that it does not use up itself, and of its last.
        """
        middle = self.num_skip_branches  # M
        size = sample.shape[-2:]
        uneven = any(side % 2**self.num_upsamplers for side in size)
        made: Outputs = {}
        h = outputs[part.start - 1] if part.start else sample  # part (1): from the part before, of an earlier step
        for i in part:
            if i == 0:
                h = made[i] = self.conv_in(h)  # d_0: (B, 320, H, W)
            elif i < middle:
                h = made[i] = run_down(self.down_layers[i - 1], h, condition)  # (B, 320, H, W) … (B, 1280, H/8, W/8)
            elif i == middle:
                if self.mid_block is not None:
                    h = self.mid_block(h, condition.emb, **condition.for_attention)  # (B, 1280, H/8, W/8)
            else:
                k = 2 * middle - i
                skip = made.pop(k) if k in part else outputs[k]  # part (2): a skip from another part, likewise
                target = self._skip_size(k - 1, size) if uneven and k else None
                h = run_up(self.up_layers[k], h, skip, condition, target)
        if part.stop == 2 * middle + 1:
            if self.conv_norm_out is not None:
                h = self.conv_act(self.conv_norm_out(h))
            h = self.conv_out(h)  # (B, 4, H, W)
        made[part.stop - 1] = h  # part (3): what the part after it reads, or the noise
        return made

    def _skip_size(self, k: int, size: Any) -> Any:
        """Height and width of skip k: each downsampler before it halves them, rounding up."""
        for layer in self.down_layers[:k]:
            if layer.downsampler is not None:
                size = type(size)(-(-side // 2) for side in size)
        return size
