"""Counted operations against the published figures, and against arithmetic done by hand."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.unet_step import SD15, SD21, SDXL
from eval.macs import count, count_steps, unet_inputs
from unets import UNet2DConditionModel, UNetSpatioTemporalConditionModel

FIGURES = json.loads((Path(__file__).parent / "data" / "macs_verified.json").read_text())["models"]


SVD_XT = {"num_attention_heads": (5, 10, 20, 20)}
PARAMETERS = {  # counted from the published checkpoints' shapes
    "sd15_512": 859_520_964,
    "sd21_512": 865_910_724,
    "sdxl_1024": 2_567_463_684,
    "svd_xt_576x1024_25f": 1_524_623_082,
}


@pytest.mark.parametrize(
    ("name", "cls", "config", "size"),
    [
        ("sd15_512", UNet2DConditionModel, SD15, (64, 64)),
        ("sd21_512", UNet2DConditionModel, SD21, (64, 64)),
        ("sd21_768", UNet2DConditionModel, SD21, (96, 96)),
        ("sdxl_1024", UNet2DConditionModel, SDXL, (128, 128)),
        ("svd_xt_576x1024_25f", UNetSpatioTemporalConditionModel, SVD_XT, (72, 128)),
    ],
)
def test_the_models_have_the_published_operations_to_the_printed_digit(name, cls, config, size):
    with torch.device("meta"):
        unet = cls(**config)
        inputs = unet_inputs(unet.to("meta"), *size)
    assert sum(p.numel() for p in unet.parameters()) == PARAMETERS.get(name, PARAMETERS["sd21_512"])
    figures = FIGURES[name]
    for branch, published in figures["retrieve"].items():
        full, retrieve = count_steps(unet, inputs, int(branch))
        assert round(full.paper / 1e9, 4) == figures["full"]
        assert round(retrieve.paper / 1e9, 4) == published
        if "full_with_attention" in figures:
            digits = len(str(figures["full_with_attention"]).split(".")[1])
            assert round(full.with_attention / 1e9, digits) == figures["full_with_attention"]
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
