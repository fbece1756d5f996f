"""With what else a stock pipeline can have switched on, and with calls in turn that differ in everything."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch._dynamo.utils import counters
from transformers import CLIPImageProcessor

from tests.plugin import tiny
from tests.plugin.cases import CASES, PICTURE, stock, with_sampler
from tests.plugin.tiny import TEXT, random
from tests.plugin.ways import offload, with_package, with_plug_in
from unets import DeepCacheSDHelper, fork_of

CACHE: dict[str, Any] = {"cache_interval": 3, "cache_branch_id": 1}


def is_stock_and_the_package(case, pipe, extra=None):
    expected = case.run(pipe, **(extra or {}))
    assert torch.equal(with_plug_in(case, pipe, extra), expected)
    cached = with_plug_in(case, pipe, extra, **CACHE)
    assert torch.equal(cached, with_package(case, pipe, extra, **CACHE))
    return expected


@pytest.mark.parametrize("name", ["sd", "xl"])
def test_with_a_lora(name):
    peft = pytest.importorskip("peft", reason="a LoRA through PEFT needs peft")
    case, pipe = CASES[name], CASES[name].build()
    plain = case.run(pipe)
    torch.manual_seed(0)
    lora = peft.LoraConfig(r=2, target_modules=["to_q", "to_v", "conv1", "proj_in"], init_lora_weights=False)
    pipe.unet.add_adapter(lora)
    whole = is_stock_and_the_package(case, pipe)
    assert not torch.equal(whole, plain)
    if name == "xl":  # Stable Diffusion's pipeline wants a text encoder for it
        half = is_stock_and_the_package(case, pipe, {"cross_attention_kwargs": {"scale": 0.5}})
        assert not torch.equal(whole, half)


def test_a_lora_that_is_loaded_or_unloaded_while_it_is_enabled_stays_so():
    peft = pytest.importorskip("peft", reason="a LoRA through PEFT needs peft")
    case, pipe = CASES["sd"], CASES["sd"].build()
    plain = case.run(pipe)
    lora = peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False)
    with DeepCacheSDHelper(pipe):
        pipe.unet.add_adapter(lora, "one")
        loaded = case.run(pipe)
    assert torch.equal(case.run(pipe), loaded) and not torch.equal(loaded, plain)
    assert "one" in pipe.unet.peft_config
    with DeepCacheSDHelper(pipe):
        pipe.unet.delete_adapters("one")
        pipe.unet.unload_lora()
    assert torch.equal(case.run(pipe), plain)
    assert not getattr(pipe.unet, "peft_config", {})


@pytest.mark.parametrize("name", ["sd", "xl"])
def test_with_an_ip_adapter(name):
    case, pipe = CASES[name], CASES[name].build()
    pipe.register_modules(image_encoder=tiny.vision(), feature_extractor=CLIPImageProcessor())
    layers = [layer for key, layer in pipe.unet.named_modules() if key.endswith("attn2")]
    weights = {}
    for i, layer in enumerate(layers):
        for j, to in enumerate(("k", "v")):
            weights[f"{2 * i + 1}.to_{to}_ip.weight"] = random(layer.to_k.out_features, TEXT, seed=10 * i + j)
    image_proj = {"proj.weight": random(4 * TEXT, 32), "proj.bias": random(4 * TEXT)}
    norm = {"norm.weight": torch.ones(TEXT), "norm.bias": torch.zeros(TEXT)}
    pipe.load_ip_adapter({"image_proj": image_proj | norm, "ip_adapter": weights}, None, None)
    pictures = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8)) for i in (0, 1)]
    results = [is_stock_and_the_package(case, pipe, {"ip_adapter_image": picture}) for picture in pictures]
    assert not torch.equal(*results)


def test_freeu_which_writes_into_what_it_is_given():
    """The package is no oracle here, since FreeU scales what that has kept once more at every step."""
    case, pipe = CASES["sd"], stock("sd")
    plain = case.run(pipe)
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    try:
        expected = case.run(pipe)
        assert not torch.equal(expected, plain)
        assert torch.equal(with_plug_in(case, pipe), expected)
        assert torch.equal(with_plug_in(case, pipe, **CACHE), with_plug_in(case, pipe, **CACHE))
        fork, arguments = fork_of(pipe.unet), (random(2, 4, 8, 8), 7, random(2, 5, TEXT))
        whole = pipe.unet(*arguments).sample
        for m in range(fork.num_skip_branches):
            kept = fork(*arguments, cache_branch_id=m).cached_feature
            for _ in range(2):
                assert torch.equal(fork(*arguments, cache_branch_id=m, cached_feature=kept).sample, whole)
    finally:
        pipe.disable_freeu()


def test_compiled_while_it_is_enabled():
    case = CASES["sd"]._replace(parts=lambda: tiny.sd_parts(layers_per_block=1))  # each layer takes a second
    pipe = case.build()
    expected, cached = case.run(pipe, 4), with_plug_in(case, pipe, {"steps": 4}, **CACHE)
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(**CACHE)
    torch._dynamo.reset()
    counters.clear()
    with helper:
        pipe.unet = torch.compile(pipe.unet, backend="eager")
        assert torch.equal(case.run(pipe, 4), cached)
        assert counters["stats"]["unique_graphs"] == 2  # a full step and one that retrieves
    assert torch.equal(case.run(pipe, 4), expected)


@pytest.mark.parametrize("offloaded_first", [True, False])
@pytest.mark.parametrize("kind", ["model", "sequential"])
def test_offloaded(kind, offloaded_first):
    case, pipe = CASES["sd"], CASES["sd"].build()
    expected, cached = case.run(pipe, 4), with_plug_in(case, pipe, {"steps": 4}, **CACHE)
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(**CACHE)
    if offloaded_first:
        offload(pipe, kind)
    with helper:
        if not offloaded_first:
            offload(pipe, kind)
        for _ in range(2):
            assert torch.equal(case.run(pipe, 4), cached)
    for _ in range(2):
        assert torch.equal(case.run(pipe, 4), expected)
    assert hasattr(pipe.unet, "_hf_hook")


TURNS: list[dict[str, Any]] = [  # steps, batch, and more
    {"steps": 6},
    {"steps": 4, "batch": 2},
    {"steps": 5, "guidance_scale": 1.0},
    {"steps": 4, "guidance_scale": 1.0, "batch": 2},
    {"steps": 3, "height": 32, "width": 64},
    {"steps": 6},
]


@pytest.mark.parametrize("name", ["sd", "xl", "controlnet", "t2i-adapter-xl", "animatediff"])
def test_no_call_sees_a_feature_of_another(name):
    case, pipe = CASES[name], stock(name)
    with_sampler(pipe, "ddim")
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(cache_interval=4, cache_branch_id=2)
    with helper:
        for turn in TURNS:
            if "image" in case.arguments:
                height, width = turn.get("height", 64), turn.get("width", 64)
                turn = {**turn, "image": PICTURE[..., :height, :width].expand(turn.get("batch", 1), -1, -1, -1)}
            together = case.run(pipe, **turn)
            alone = DeepCacheSDHelper(other := case.build())
            with_sampler(other, "ddim")
            alone.set_params(cache_interval=4, cache_branch_id=2)
            with alone:
                assert torch.equal(together, case.run(other, **turn))
