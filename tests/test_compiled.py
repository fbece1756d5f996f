"""With torch.compile on the U-Net's forward, as the scripts' --compile does it."""

from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from pipelines.loading import place_pipeline
from tests.two_levels import small
from unets import DeepCacheSDHelper
from unets.compiled import compile_forward

CACHE: dict[str, Any] = {"cache_interval": 3, "cache_branch_id": 1}

pytestmark = pytest.mark.slow  # compiling takes long


GRAPHS = {"sd": 2, "xl-base": 2, "svd": 2, "controlnet": 2, "t2v-zero": 4}  # one frame and all frames are two batches


@pytest.fixture(autouse=True)
def graphs(monkeypatch):
    """How many graphs were compiled since the test began; by the backend that takes them as they are."""
    compile_by_default = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: compile_by_default(f, **{"backend": "eager", **options}))
    torch._dynamo.reset()
    counters.clear()
    yield lambda: counters["stats"]["unique_graphs"]
    torch._dynamo.reset()


def compile_unet(pipe):
    """As `place_pipeline` does, but for the sampler, which with its step compiled rounds otherwise."""
    compile_forward(pipe.unet)


@pytest.mark.parametrize("name", GRAPHS)
def test_a_forks_two_kinds_of_step_are_two_graphs_for_all_runs(name, graphs):
    family = small(name)
    _, fork = family.pair("euler" if name == "svd" else "ddim")
    expected = family.run(fork, 7, **CACHE)
    compile_unet(fork)
    for _ in range(2):
        assert np.array_equal(family.run(fork, 7, **CACHE), expected)
        assert graphs() == GRAPHS[name]


def test_with_the_samplers_step_a_graph_more_is_compiled_for_all_runs(graphs):
    family = small("sd")
    _, fork = family.pair("dpm++")
    expected = family.run(fork, 7, **CACHE)
    place_pipeline(fork, torch.device("cpu"), channels_last=False, compiled=True, cpu_offload=False)
    for _ in range(2):
        # The sampler's sum is added in another order, in float32.
        assert np.abs(family.run(fork, 7, **CACHE) - expected).max() < 2e-5
        assert graphs() == 3


def test_the_plug_ins_two_kinds_of_step_are_two_graphs_for_all_runs(graphs):
    family = small("xl")
    stock, fork = family.pair()
    expected = family.run(fork, 7, **CACHE)
    helper = DeepCacheSDHelper(stock)
    helper.set_params(**CACHE)
    with helper:
        compile_unet(stock)
        for _ in range(2):
            assert np.array_equal(family.run(stock, 7), expected)
            assert graphs() == 2
        helper.set_params()  # the baseline, as the script over all types runs it
        family.run(stock, 7)
        assert graphs() == 3


def test_two_depths_and_attention_are_three_graphs_for_all_runs(graphs):
    family = small("sd")
    _, fork = family.pair()
    cache = {"cache_interval": 6, "cache_branch_id": 1, "refresh_interval": 3, "refresh_branch_id": 3}
    expected = family.run(fork, 13, **cache, reuse_attention=True, forecast=1.0)
    compile_unet(fork)
    for _ in range(2):
        assert np.array_equal(family.run(fork, 13, **cache, reuse_attention=True, forecast=1.0), expected)
        assert graphs() == 3


def overwriting(graph: Any, _: Any) -> Any:
    """A backend whose graphs return what their next call overwrites, as CUDA graphs do."""
    held: list[torch.Tensor] = []

    def run(*args: Any) -> Any:
        outputs = graph(*args)
        if not held:
            held.extend(torch.empty_like(output) for output in outputs)
        for own, output in zip(held, outputs, strict=True):
            own.copy_(output)
        return tuple(held)

    return run


def test_outputs_that_a_graph_overwrites_were_copied(graphs):
    family = small("sd")
    _, fork = family.pair("plms")
    run: dict[str, Any] = {
        "guidance_scale": 1.0, "cache_interval": 6, "cache_branch_id": 1, "refresh_interval": 3,
        "refresh_branch_id": 3, "reuse_attention": True, "forecast": 1.0,
    }  # fmt: skip
    expected = family.run(fork, 13, **run)  # without guidance PLMS itself keeps what the U-Net returned
    plain = family.run(fork, 5, guidance_scale=1.0)
    plainly_compiled = fork.unet.forward
    torch._dynamo.reset()
    fork.unet.forward = torch.compile(plainly_compiled, backend=overwriting, fullgraph=True)
    assert not np.array_equal(family.run(fork, 5, guidance_scale=1.0), plain)  # of one graph, which is soon compiled
    torch._dynamo.reset()
    fork.unet.forward = plainly_compiled
    compile_forward(fork.unet, backend=overwriting)
    assert np.array_equal(family.run(fork, 13, **run), expected)
