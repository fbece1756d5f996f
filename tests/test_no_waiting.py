"""Nothing in a denoising loop makes the host wait for the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import pipelines
from pipelines.loading import new_scheduler
from tests.families import FAMILIES

# UniPC makes a small tensor on the device at every step, from numbers of the host.
SCHEDULERS = ["plms", "ddim", "dpm++", "euler"]


class Watch(TorchDispatchMode):
    """Notes copies between devices while `inside` a loop. Reading a value of the device is an error by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = False
        self.copies: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        name = str(function)
        if self.inside and ("_to_copy" in name or "copy_" in name):
            source = args[0] if "_to_copy" in name else args[1]
            if source.device != output.device:
                self.copies.append(f"{name}: {source.device} to {output.device}")
        return output


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("beyond", [{}, {"forecast": 1.0, "reuse_guidance": True, "refresh_interval": 2,
                                         "refresh_branch_id": 3, "reuse_attention": True}])  # fmt: skip
def test_no_step_reads_from_the_device_or_copies_to_it(scheduler, beyond):
    # The meta device stands for an accelerator: its tensors have no values, so that reading one fails.
    parts = FAMILIES["sd"].parts()
    parts["scheduler"] = new_scheduler(scheduler, parts["scheduler"].config)
    pipe = pipelines.StableDiffusionPipeline(**{**parts, "text_encoder": None, "tokenizer": None}).to("meta")
    pipe.set_progress_bar_config(disable=True)
    width, side = pipe.unet.config.cross_attention_dim, pipe.unet.config.sample_size
    text = torch.zeros(1, 7, width, device="meta")
    with Watch() as watch:

        def step_ended(_: Any, i: int, __: Any, values: dict[str, Any]) -> dict[str, Any]:
            watch.inside = i < 11
            return values

        output = pipe(
            prompt_embeds=text, negative_prompt_embeds=text, latents=torch.zeros(1, 4, side, side, device="meta"),
            num_inference_steps=12, output_type="latent", cache_interval=4, cache_branch_id=1, return_dict=False,
            callback_on_step_end=step_ended, **beyond,
        )  # fmt: skip
    assert output[0].device.type == "meta"
    assert watch.copies == []
