"""The forked U-Net against diffusers' own, and what a retrieve step executes."""

import inspect
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models.embeddings import ImageProjection
from diffusers.models.lora import LoRACompatibleConv, LoRACompatibleLinear, LoRAConv2dLayer, LoRALinearLayer

from benchmarks.unet_step import peak_memory
from tests.tiny import LAYOUTS, inputs, stock_unet
from unets import UNet2DConditionModel
from unets.unet_2d_condition import run_down

SIZES = [(8, 8), (10, 14)]  # the second is not a multiple of 2 ** levels


def pair(layout="sd15"):
    stock = stock_unet(layout)
    return stock, UNet2DConditionModel.sharing(stock)


def residuals(fork, arguments):
    """A ControlNet's: one for each skip, one for the middle."""
    skips = [fork.conv_in(arguments["sample"])]
    for layer in fork.down_layers:
        skips.append(run_down(layer, skips[-1], fork._condition(**_condition_arguments(arguments))))
    torch.manual_seed(5)
    return [torch.randn_like(skip) for skip in skips], torch.randn_like(skips[-1])


def _condition_arguments(arguments):
    names = list(inspect.signature(UNet2DConditionModel._condition).parameters)[1:]
    renamed = {"context": arguments["encoder_hidden_states"]}
    return {name: renamed.get(name, arguments.get(name)) for name in names}


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_cache_it_is_the_stock_forward_bit_for_bit(layout, size):
    stock, fork = pair(layout)
    arguments = inputs(layout, *size)
    for timestep in (5, 5.5, torch.tensor(7), torch.tensor([3, 900])):
        arguments["timestep"] = timestep
        expected = stock(**arguments).sample
        assert torch.equal(fork(**arguments).sample, expected)
        assert torch.equal(fork(**arguments, return_dict=False)[0], expected)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_retrieving_what_the_same_input_kept_changes_nothing_at_any_branch(layout, size):
    stock, fork = pair(layout)
    arguments = inputs(layout, *size)
    expected = stock(**arguments).sample
    for m in range(fork.num_skip_branches):
        full = fork(**arguments, cache_branch_id=m)
        assert torch.equal(full.sample, expected)
        retrieved = fork(**arguments, cache_branch_id=m, cached_feature=full.cached_feature)
        assert torch.equal(retrieved.sample, expected), f"branch {m}"
        assert torch.equal(retrieved.cached_feature, full.cached_feature)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_retrieve_step_executes_d_0_to_d_m_and_u_m_to_u_0_and_nothing_else(layout, request):
    _, fork = pair(layout)
    arguments = inputs(layout)
    names = {module: name for name, module in fork.named_modules()}
    executed = set()
    for module in names:
        hook = module.register_forward_hook(lambda module, *_: executed.add(names[module]))
        request.addfinalizer(hook.remove)  # diffusers shares activations between all models

    def modules_of(layers):
        parts = [
            part for layer in layers for name, part in layer._asdict().items() if name != "block" and part is not None
        ]
        return {names[module] for part in parts for module in part.modules()}

    around = {
        n for n in names.values() if n.split(".")[0] in ("time_embedding", "add_embedding", "conv_in", "conv_out")
    }
    for m in range(fork.num_skip_branches):
        kept = fork(**arguments, cache_branch_id=m).cached_feature
        executed.clear()
        fork(**arguments, cache_branch_id=m, cached_feature=kept)
        blocks = {n for n in executed if n.split(".")[0] in ("down_blocks", "mid_block", "up_blocks")}
        expected = modules_of(fork.down_layers[:m]) | modules_of(fork.up_layers[: m + 1])
        assert blocks <= expected, f"branch {m} executes {sorted(blocks - expected)}"
        # Containers, dropout of 0 and such are not called; every layer with weights is.
        weighty = {
            n for n in expected | around if next(fork.get_submodule(n).parameters(recurse=False), None) is not None
        }
        assert weighty <= executed, f"branch {m} leaves out {sorted(weighty - executed)}"


def test_layers_are_the_m_pairs_of_the_design():
    _, fork = pair("sd15")
    assert fork.num_skip_branches == 12
    assert len(fork.down_layers) == 11  # d_0 is conv_in
    assert [k + 1 for k, d in enumerate(fork.down_layers) if d.downsampler is not None] == [3, 6, 9]
    assert [k for k, u in enumerate(fork.up_layers) if u.upsampler is not None] == [3, 6, 9]
    assert fork.up_layers[0].resnet is fork.up_blocks[-1].resnets[-1]


def test_controlnet_residuals_of_deeper_skips_are_not_looked_at_on_a_retrieve_step():
    stock, fork = pair()
    arguments = inputs()
    down, middle = residuals(fork, arguments)
    control = {"down_block_additional_residuals": tuple(down), "mid_block_additional_residual": middle}
    expected = stock(**arguments, **control).sample
    for m in range(12):
        full = fork(**arguments, **control, cache_branch_id=m)
        assert torch.equal(full.sample, expected)
        shallow = {"down_block_additional_residuals": tuple(down[: m + 1])}
        retrieved = fork(**arguments, **shallow, cache_branch_id=m, cached_feature=full.cached_feature)
        assert torch.equal(retrieved.sample, expected)


def test_controlnet_residuals_that_do_not_fit_together_are_refused():
    _, fork = pair()
    arguments = inputs()
    down, middle = residuals(fork, arguments)
    kept = fork(**arguments, cache_branch_id=2).cached_feature
    with pytest.raises(ValueError, match="must be given together"):  # to the stock class these would be a T2I-Adapter's
        fork(**arguments, down_block_additional_residuals=tuple(down))
    with pytest.raises(ValueError, match="must be given together"):
        fork(**arguments, mid_block_additional_residual=middle)
    with pytest.raises(ValueError, match="zip"):  # two residuals for the three skips that are used
        fork(**arguments, down_block_additional_residuals=tuple(down[:2]), cache_branch_id=2, cached_feature=kept)


@pytest.mark.parametrize("layout", ["sd15", "sd21", "sdxl", "ldm4", "bk_sdm_base"])
def test_freeu_is_the_stock_one_and_leaves_the_kept_feature_as_it_is(layout):
    stock, fork = pair(layout)
    arguments = inputs(layout)
    plain = stock(**arguments).sample
    fork.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    expected = stock(**arguments).sample
    assert not torch.equal(expected, plain)
    for m in range(fork.num_skip_branches):
        full = fork(**arguments, cache_branch_id=m)
        assert torch.equal(full.sample, expected)
        for _ in range(2):  # a second time, in case the first spoilt the feature
            retrieved = fork(**arguments, cache_branch_id=m, cached_feature=full.cached_feature)
            assert torch.equal(retrieved.sample, expected)


def test_lora_scale_reaches_the_layers():
    stock, fork = pair()
    torch.manual_seed(4)
    for module in list(stock.modules()):
        if isinstance(module, LoRACompatibleLinear):
            lora = LoRALinearLayer(module.in_features, module.out_features, rank=2)
        elif isinstance(module, LoRACompatibleConv):
            shape = module.kernel_size, module.stride, module.padding
            lora = LoRAConv2dLayer(module.in_channels, module.out_channels, 2, *shape)
        else:
            continue
        torch.nn.init.normal_(lora.up.weight, std=0.1)
        module.set_lora_layer(lora)
    results = []
    for scale in (0.0, 0.5, 1.0):
        arguments = {**inputs(), "cross_attention_kwargs": {"scale": scale}}
        expected = stock(**arguments).sample
        full = fork(**arguments, cache_branch_id=2)
        assert torch.equal(full.sample, expected)
        retrieved = fork(**arguments, cache_branch_id=2, cached_feature=full.cached_feature)
        assert torch.equal(retrieved.sample, expected)
        results.append(expected)
    assert not torch.equal(results[0], results[1])
    assert not torch.equal(results[1], results[2])


def test_ip_adapter_tokens_are_the_stock_ones():
    stock, fork = pair()
    weights = {}
    for k, name in enumerate(n for n in stock.attn_processors if n.endswith("attn2.processor")):
        width = stock.get_submodule(name.removesuffix(".processor")).to_q.out_features
        for kind in ("to_k_ip", "to_v_ip"):
            weights[f"{2 * k + 1}.{kind}.weight"] = torch.randn(width, 24)
    projection = ImageProjection(image_embed_dim=16, cross_attention_dim=24, num_image_text_embeds=4)
    image_proj = {
        "proj.weight": projection.image_embeds.weight,
        "proj.bias": projection.image_embeds.bias,
        "norm.weight": projection.norm.weight,
        "norm.bias": projection.norm.bias,
    }
    for unet in (stock, fork):
        unet._load_ip_adapter_weights({"image_proj": image_proj, "ip_adapter": weights})
    without = inputs()
    arguments = {**without, "added_cond_kwargs": {"image_embeds": torch.randn(2, 16)}}
    expected = stock(**arguments).sample
    full = fork(**arguments, cache_branch_id=1)
    assert torch.equal(full.sample, expected)
    assert torch.equal(fork(**arguments, cache_branch_id=1, cached_feature=full.cached_feature).sample, expected)
    with pytest.raises(ValueError, match="image_embeds"):
        fork(**without)


def test_a_mask_of_text_tokens_is_the_stock_one():
    stock, fork = pair()
    arguments = inputs()
    mask = torch.ones(2, 7)
    mask[:, 4:] = 0
    plain = stock(**arguments).sample
    expected = stock(**arguments, encoder_attention_mask=mask).sample
    assert not torch.equal(expected, plain)
    full = fork(**arguments, encoder_attention_mask=mask, cache_branch_id=3)
    assert torch.equal(full.sample, expected)
    shallow = fork(**arguments, encoder_attention_mask=mask, cache_branch_id=3, cached_feature=full.cached_feature)
    assert torch.equal(shallow.sample, expected)


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"class_labels": torch.tensor([1])}, "class_labels"),
        ({"cache_branch_id": 12}, "cache_branch_id is 12"),
        ({"cache_branch_id": -1}, "cache_branch_id is -1"),
        ({"cached_feature": torch.zeros(1)}, "needs the cache_branch_id"),
    ],
)
def test_unsupported_options_are_refused_by_name(extra, named):
    with pytest.raises(ValueError, match=named):
        pair()[1](**inputs(), **extra)


@pytest.mark.parametrize(
    "changes",
    [
        {"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"},
        {"down_block_types": (*["SimpleCrossAttnDownBlock2D"] * 3, "DownBlock2D")},
        {"addition_embed_type": "text"},
        {"center_input_sample": True},
        {"attention_type": "gated"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_layout_that_is_not_written_out_is_refused_by_name(changes):
    stock = stock_unet("sd15", **changes)
    with pytest.raises(ValueError, match=next(iter(changes))):
        UNet2DConditionModel.sharing(stock)
    with pytest.raises(ValueError, match=next(iter(changes))):
        UNet2DConditionModel.from_config(stock.config)


def test_sdxl_conditions_that_are_missing_are_named():
    _, fork = pair("sdxl")
    with pytest.raises(ValueError, match="text_embeds"):
        fork(**{**inputs("sdxl"), "added_cond_kwargs": None})


def test_forward_has_the_parents_arguments_and_the_caches():
    ours = list(inspect.signature(UNet2DConditionModel.forward).parameters)
    parents = list(inspect.signature(diffusers.UNet2DConditionModel.forward).parameters)
    assert ours == [
        *parents,
        "cache_branch_id",
        "cached_feature",
        "keep_branch_id",
        "cached_attention",
        "keep_attention",
    ]


def test_saves_and_loads_as_the_stock_class(tmp_path):
    stock, fork = pair("sd21")
    assert list(fork.state_dict()) == list(stock.state_dict())
    fork.save_pretrained(tmp_path)
    arguments, weights = inputs("sd21"), stock.state_dict()
    outputs = []
    for cls in (diffusers.UNet2DConditionModel, UNet2DConditionModel):
        loaded = cls.from_pretrained(tmp_path)
        assert type(loaded) is cls
        assert all(torch.equal(weight, weights[name]) for name, weight in loaded.state_dict().items())
        outputs.append(loaded(**arguments).sample)
    assert torch.equal(*outputs)


def test_sharing_leaves_the_stock_model_as_it_is_and_refuses_an_offloaded_one():
    stock, fork = pair()
    assert type(stock) is diffusers.UNet2DConditionModel
    assert fork.conv_in.weight is stock.conv_in.weight
    assert UNet2DConditionModel.sharing(fork) is fork
    stock._hf_hook = object()
    with pytest.raises(ValueError, match="offloaded"):
        UNet2DConditionModel.sharing(stock)


@pytest.mark.parametrize("branch", [0, 1, 5, 11])
def test_a_full_step_holds_no_more_memory_than_the_stock_forward_and_the_kept_feature(branch):
    stock, fork = pair()
    arguments = inputs(height=32, width=32)
    kept = fork(**arguments, cache_branch_id=branch).cached_feature
    cpu = torch.device("cpu")
    baseline = peak_memory(lambda: stock(**arguments), cpu)
    full = peak_memory(lambda: fork(**arguments, cache_branch_id=branch), cpu)
    retrieve = peak_memory(lambda: fork(**arguments, cache_branch_id=branch, cached_feature=kept), cpu)
    assert full <= baseline + kept.nbytes
    assert retrieve <= baseline


@pytest.mark.slow
def test_each_kind_of_step_compiles_to_one_graph_and_is_not_compiled_again():
    _, fork = pair("bk_sdm_base")  # of one layer per block, each of which takes a second
    arguments = inputs()
    torch._dynamo.reset()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(fork, fullgraph=True, backend=backend)
    kept = None
    for i in range(7):
        if i % 3 == 0:
            kept = None
        arguments["timestep"] = torch.tensor(900 - 100 * i)
        expected = fork(**arguments, cache_branch_id=1, cached_feature=kept)
        output = compiled(**arguments, cache_branch_id=1, cached_feature=kept)
        kept = output.cached_feature
        assert torch.equal(output.sample, expected.sample)
    assert len(graphs) == 2


CLASSES: dict[str, tuple[dict[str, Any], torch.Tensor]] = {
    "a table": ({"num_class_embeds": 10}, torch.tensor([3, 7])),
    "timestep": ({"class_embed_type": "timestep"}, torch.tensor([3, 7])),
    "identity": ({"class_embed_type": "identity"}, torch.linspace(-1, 1, 64).reshape(2, 32)),
    "concatenated": (
        {
            "class_embed_type": "projection",
            "projection_class_embeddings_input_dim": 5,
            "class_embeddings_concat": True,
        },
        torch.linspace(-1, 1, 10).reshape(2, 5),
    ),
}


def is_stock_at_every_branch(stock, fork, arguments):
    """Where it retrieves what the same input kept, too."""
    expected = stock(**arguments()).sample
    for m in range(fork.num_skip_branches):
        full = fork(**arguments(), cache_branch_id=m)
        assert torch.equal(full.sample, expected)
        retrieved = fork(**arguments(), cache_branch_id=m, cached_feature=full.cached_feature)
        assert torch.equal(retrieved.sample, expected)
    return expected


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_is_embedded_as_by_the_stock_unet(name):
    changes, labels = CLASSES[name]
    stock = stock_unet("sd15", **changes)
    fork = UNet2DConditionModel.sharing(stock)
    one = is_stock_at_every_branch(stock, fork, lambda: {**inputs(), "class_labels": labels})
    assert not torch.equal(one, stock(**inputs(), class_labels=labels.flip(0)).sample)
    with pytest.raises(ValueError, match="class_labels are needed"):
        fork(**inputs())


@pytest.mark.parametrize("layout", ["sd15", "sdxl"])
def test_a_t2i_adapters_features_are_added_where_the_stock_unet_adds_them(layout):
    stock, fork = pair(layout)
    torch.manual_seed(3)
    sides, channels = ((8, 4, 2, 1), (8, 16, 16, 16)) if layout == "sd15" else ((4, 4, 2, 2), (8, 16, 16, 16))
    features = [torch.randn(2, c, side, side) for c, side in zip(channels, sides, strict=True)]

    def arguments():
        # The stock U-Net takes them off the list.
        return {**inputs(layout), "down_intrablock_additional_residuals": [feature.clone() for feature in features]}

    assert not torch.equal(is_stock_at_every_branch(stock, fork, arguments), stock(**inputs(layout)).sample)


def test_a_text_of_another_width_is_projected_as_by_the_stock_unet():
    stock = stock_unet("sd15", encoder_hid_dim=10, encoder_hid_dim_type="text_proj")
    text = torch.linspace(-1, 1, 140).reshape(2, 7, 10)
    is_stock_at_every_branch(
        stock, UNet2DConditionModel.sharing(stock), lambda: {**inputs(), "encoder_hidden_states": text}
    )
