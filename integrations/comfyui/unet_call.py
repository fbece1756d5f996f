"""One call of ComfyUI's U-Net, with everything that its `_forward` does around the blocks that run."""

from __future__ import annotations

from typing import Any

from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules import openaimodel
from DeepCache.ldm import LdmCall
from torch import Tensor


class ComfyCall(LdmCall):
    """`LdmCall` with ControlNets, patches of other nodes, and videos.

    Args:
        control: lists of residuals, consumed from the end; `output` has one for each skip, that of skip 0 first.
        options: `transformer_options`. Patches find the same values in it as without a cache, such as block numbers.
        video: the other keyword arguments.
    """

    def __init__(
        self, unet: Any, x: Tensor, timesteps: Any, context: Any, y: Any, control: Any, options: dict[str, Any],
        video: dict[str, Any],
    ) -> None:  # fmt: skip
        super().__init__(unet, x, timesteps, context, y)
        self.control = None if control is None else {name: list(residuals) for name, residuals in control.items()}
        self.options = options
        self.patches = options.get("patches", {})
        self.video = {
            "time_context": video.get("time_context"),
            "num_video_frames": video.get("num_video_frames", getattr(unet, "default_num_video_frames", None)),
            "image_only_indicator": video.get("image_only_indicator"),
        }

    def begin(self) -> Tensor:
        unet = self.unet
        self.options["original_shape"] = list(self.x.shape)
        self.options["transformer_index"] = 0
        t_emb = openaimodel.timestep_embedding(self.timesteps, unet.model_channels, repeat_only=False).to(self.x.dtype)
        self.emb = unet.time_embed(t_emb)
        for patch in self.patches.get("emb_patch", ()):
            self.emb = patch(self.emb, unet.model_channels, self.options)
        if self.y is not None:
            self.emb = self.emb + unet.label_emb(self.y)
        return self.x

    def down(self, k: int, h: Tensor) -> tuple[Tensor, Tensor]:
        h = self._run(self.unet.input_blocks[k], h, ("input", k))
        h = openaimodel.apply_control(h, self.control, "input")
        for patch in self.patches.get("input_block_patch", ()):
            h = patch(h, self.options)
        skip = h
        for patch in self.patches.get("input_block_patch_after_skip", ()):
            h = patch(h, self.options)
        return h, skip

    def skip_deep_layers(self, m: int) -> None:
        """Consumes the residuals, and counts the transformers, of the blocks that do not run."""
        count = len(self.unet.output_blocks) - 1 - m
        middle = [] if self.unet.middle_block is None else [self.unet.middle_block]
        for block in (*self.unet.input_blocks[m + 1 :], *middle, *self.unet.output_blocks[:count]):
            self.options["transformer_index"] += sum(isinstance(layer, SpatialTransformer) for layer in block)
        if self.control is not None:
            residuals = self.control.get("output", [])
            del residuals[max(0, len(residuals) - count) :]

    def middle(self, h: Tensor) -> Tensor:
        if self.unet.middle_block is not None:
            h = self._run(self.unet.middle_block, h, ("middle", 0))
        return openaimodel.apply_control(h, self.control, "middle")

    def up(self, k: int, h: Tensor, skip: Tensor, next_skip: Tensor | None) -> Tensor:
        number = len(self.unet.output_blocks) - 1 - k
        self.options["block"] = ("output", number)
        skip = openaimodel.apply_control(skip, self.control, "output")
        patches = self.patches.get("output_block_patch", ())
        h = h.clone() if patches else h  # FreeU modifies it in place, and it can be the cached feature
        for patch in patches:
            h, skip = patch(h, skip, self.options)
        h = openaimodel.th.cat([h, skip], dim=1)
        shape = None if next_skip is None else next_skip.shape
        return self._run(self.unet.output_blocks[number], h, ("output", number), shape)

    def _run(self, block: Any, h: Tensor, name: tuple[str, int], output_shape: Any = None) -> Tensor:
        self.options["block"] = name
        return openaimodel.forward_timestep_embed(
            block, h, self.emb, self.context, self.options, output_shape, **self.video
        )  # type: ignore[no-any-return]
