"""Counted operations against the published figures, and against arithmetic done by hand."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.unet_step import SD15, SD21
from eval.macs import count, count_steps, unet_inputs
from unets import UNet2DConditionModel

FIGURES = json.loads((Path(__file__).parent / "data" / "macs_verified.json").read_text())["models"]


@pytest.mark.parametrize(
    ("name", "config", "side"), [("sd15_512", SD15, 64), ("sd21_512", SD21, 64), ("sd21_768", SD21, 96)]
)
def test_stable_diffusion_has_the_published_operations_to_the_printed_digit(name, config, side):
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
        inputs = unet_inputs(unet, side, side)
    figures = FIGURES[name]
    for branch, published in figures["retrieve"].items():
        full, retrieve = count_steps(unet, inputs, int(branch))
        assert round(full.paper / 1e9, 4) == figures["full"]
        assert round(retrieve.paper / 1e9, 4) == published
        if "full_with_attention" in figures:
            assert round(full.with_attention / 1e9, 4) == figures["full_with_attention"]
        if branch in figures.get("retrieve_with_attention", {}):
            assert round(retrieve.with_attention / 1e9, 4) == figures["retrieve_with_attention"][branch]


def test_both_conventions_by_hand():
    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 6, 3, padding=1, groups=2)
            self.norm = nn.GroupNorm(2, 6)
            self.linear = nn.Linear(6, 5)

        def forward(self, x):
            return self.linear(self.norm(self.conv(x)).flatten(2).transpose(1, 2))

    macs = count(Small(), {"x": torch.zeros(1, 4, 8, 8)})
    convolution = 3 * 3 * 2 * 6 * 64
    linear = 6 * 5 * 64
    assert macs.with_attention == convolution + linear
    assert macs.paper == (convolution + 6 * 64) + 2 * 6 * 64 + (linear + 5)
