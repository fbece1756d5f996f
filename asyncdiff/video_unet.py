"""The U-Net of Stable Video Diffusion, of which a process runs its part, as `image_unet.py` does for pictures."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from unets.unet_spatio_temporal_condition import (
    CachedVideoUNetOutput,
    Condition,
    UNetSpatioTemporalConditionModel,
    run_down,
    run_up,
)

from .refusals import refuse
from .run import AsyncRun, Outputs


class PartedUNetSpatioTemporalConditionModel(UNetSpatioTemporalConditionModel):
    """The fork over the same weights, for one run, in whose denoising loop it is called as the fork is."""

    run: AsyncRun

    def forward(  # type: ignore[override]  # the rest of the fork's arguments is refused
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, added_time_ids: Tensor, **others: Any
    ) -> CachedVideoUNetOutput:
        """Predicts the noise of every frame. Arguments as the fork's; those of DeepCache are refused."""
        refuse(others)

        def run_part(part: range, timestep: Tensor, outputs: Outputs) -> Outputs:
            condition = self._condition(sample, timestep, encoder_hidden_states, added_time_ids)
            return self.run_layers(part, sample.flatten(0, 1), condition, outputs)

        noise = self.run.noise(timestep, run_part)  # (B·F, 4, H, W)
        return CachedVideoUNetOutput(sample=noise.unflatten(0, sample.shape[:2]))  # (B, F, 4, H, W)

    def run_layers(self, part: range, sample: Tensor, condition: Condition, outputs: Outputs) -> Outputs:
        """The forward of one part, given outputs of the parts before it.

        Returns:
            The outputs that other parts may read: of its down layers that it does not use up itself, and of its last.
        """
        middle = self.num_skip_branches  # M
        made: Outputs = {}
        h = outputs[part.start - 1] if part.start else sample  # part (1): from the part before, of an earlier step
        for i in part:
            if i == 0:
                h = made[i] = self.conv_in(h)  # d_0: (B·F, 320, H, W)
            elif i < middle:
                h = made[i] = run_down(
                    self.down_layers[i - 1], h, condition
                )  # (B·F, 320, H, W) … (B·F, 1280, H/8, W/8)
            elif i == middle:
                h = self.mid_block(h, condition.emb, condition.context, condition.image_only_indicator)
            else:
                k = 2 * middle - i
                skip = made.pop(k) if k in part else outputs[k]  # part (2): a skip from another part, likewise
                h = run_up(self.up_layers[k], h, skip, condition)
        if part.stop == 2 * middle + 1:
            h = self.conv_out(self.conv_act(self.conv_norm_out(h)))  # (B·F, 4, H, W)
        made[part.stop - 1] = h  # part (3): what the part after it reads, or the noise
        return made
