"""What each layer of a U-Net costs, counted without weights on the meta device."""

from __future__ import annotations

from typing import Any

import torch

from eval.counting.macs import count_modules, unet_inputs
from unets import fork_class


def layer_costs(unet: Any, height: int, width: int, *, tokens: int = 77, frames: int = 25) -> list[int]:
    """Multiply-accumulates, attention's included, of d_0 … d_{M-1}, middle, u_{M-1} … u_0 for latents of this size."""
    with torch.device("meta"):
        fork = fork_class(unet).from_config(unet.config).to("meta", unet.dtype).eval()
        macs = count_modules(fork, unet_inputs(fork, height, width, tokens=tokens, frames=frames))
    names = {module: name for name, module in fork.named_modules()}
    layers = [
        (fork.conv_in,),
        *fork.down_layers,
        (fork.mid_block,),
        *((u.resnet, u.attention, u.upsampler) for u in reversed(fork.up_layers)),
    ]
    layers[-1] = (*layers[-1], fork.conv_out)
    return [sum(macs[names[m]].with_attention for m in modules if m is not None) for modules in layers]
