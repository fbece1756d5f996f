"""A ControlNet on retrieve steps: it runs as far as the branch needs, with the same outputs up to there."""

import torch

from pipelines import tiny
from tests.families import FAMILIES
from unets.controlnet import ControlNetModel


def test_a_retrieve_step_runs_of_a_controlnet_what_the_branch_needs():
    family = FAMILIES["controlnet"]
    _, fork = family.pair()
    ran = []
    for k, layer in enumerate(fork.controlnet.controlnet_down_blocks):
        layer.register_forward_hook(lambda *_, k=k: ran.append(k))
    fork.controlnet.mid_block.register_forward_hook(lambda *_: ran.append("middle"))
    family.run(fork, 4, cache_interval=2, cache_branch_id=4)
    assert ran == 2 * ["middle", *range(12), *range(5)]


def test_what_a_controlnet_gives_to_the_skips_does_not_depend_on_how_far_it_is_run():
    net = ControlNetModel.sharing(tiny.controlnet(tiny.unet(tiny.SD21)))
    torch.manual_seed(0)
    arguments = {
        "sample": torch.randn(2, 4, 8, 8),
        "timestep": 7,
        "encoder_hidden_states": torch.randn(2, 5, 24),
        "controlnet_cond": torch.rand(2, 3, 64, 64),
        "guess_mode": True,
    }
    whole = net(**arguments).down_block_res_samples
    for m in range(len(whole)):
        part = net(**arguments, cache_branch_id=m)
        assert part.mid_block_res_sample is None
        assert len(part.down_block_res_samples) == m + 1
        assert all(torch.equal(a, b) for a, b in zip(part.down_block_res_samples, whole, strict=False))
