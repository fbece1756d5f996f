"""The fork of DiT's pipeline and transformer: bit for bit diffusers' without a cache, and by hand with one."""

import inspect
import json

import diffusers
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

import stable_diffusion
from common.shipped import SHAPES_DIT
from dit import sample
from dit.cache import LayerCacheRun
from dit.config import LayerCacheConfig
from dit.macs import XL2_256, layer_macs
from dit.pipeline import DiTPipeline, class_names
from dit.tiny import LAYOUT
from dit.transformer import Transformer2DModel
from tests.tiny_dit import inputs, pipelines, run, widened

STEP = [None] * 4  # of two blocks, every layer is computed


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler])
@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_without_a_cache_the_fork_is_diffusers_pipeline(scheduler, guidance_scale):
    stock, fork = pipelines()
    stock.scheduler = fork.scheduler = scheduler.from_config(stock.scheduler.config)
    expected = run(stock, guidance_scale=guidance_scale)
    assert np.array_equal(run(fork, guidance_scale=guidance_scale), expected)
    everything = LayerCacheConfig(layers=["xxxx"] * 4)
    assert np.array_equal(run(fork, guidance_scale=guidance_scale, cache=everything), expected)
    assert not np.array_equal(run(fork, guidance_scale=guidance_scale, cache=LayerCacheConfig(2)), expected)


@pytest.mark.parametrize("changes", [{}, {"out_channels": 4, "num_embeds_ada_norm": 40, "attention_bias": False}])
def test_the_transformer_is_diffusers_bit_for_bit(changes):
    stock = pipelines(**changes)[0].transformer
    fork, given = Transformer2DModel.sharing(stock), inputs()
    given["class_labels"] = given["class_labels"].clamp(max=stock.config.num_embeds_ada_norm)
    with torch.no_grad():
        expected = stock(**given).sample
        assert torch.equal(fork(**given).sample, expected)
        assert torch.equal(fork(**given, reused=STEP).sample, expected)
        (alone,) = fork(**given, return_dict=False)
    assert torch.equal(alone, expected)
    assert fork.proj_out_2.weight is stock.proj_out_2.weight


def test_the_forks_have_the_parents_arguments():
    for fork, stock, own in (
        (Transformer2DModel.forward, diffusers.Transformer2DModel.forward, ["reused", "shares"]),
        (DiTPipeline.__call__, diffusers.DiTPipeline.__call__, ["cache"]),
    ):
        ours, theirs = (inspect.signature(inspect.unwrap(f)).parameters for f in (fork, stock))
        assert list(ours) == [*theirs, *own]
        assert all(ours[name].default == theirs[name].default for name in theirs)


def check_against_widened(pipe):
    """diffusers' own pipeline has class 1000 for any, so it runs the model with its table of classes widened."""
    stock = diffusers.DiTPipeline(widened(pipe.transformer), pipe.vae, pipe.scheduler)
    for one in (stock, pipe):
        one.set_progress_bar_config(disable=True)
    for guidance_scale in (1.0, 1.5):
        expected = run(stock, [39, 0], guidance_scale=guidance_scale, num_inference_steps=3)
        assert np.array_equal(run(pipe, [39, 0], guidance_scale=guidance_scale, num_inference_steps=3), expected)


def test_models_of_other_numbers_of_classes_are_guided_as_diffusers_guides_a_thousand():
    check_against_widened(pipelines(num_embeds_ada_norm=40)[1])


def test_without_a_cache_the_shipped_model_is_diffusers_pipeline():
    pipe = DiTPipeline.from_pretrained(SHAPES_DIT)
    check_against_widened(pipe)
    assert class_names(pipe)[9] == "green square"
    assert sum(file.stat().st_size for file in SHAPES_DIT.rglob("*") if file.is_file()) <= 10_000_000


def test_what_is_saved_loads_as_diffusers_own(tmp_path):
    stock, _ = pipelines()
    fork = DiTPipeline(stock.transformer, stock.vae, stock.scheduler, id2label={7: "cock, rooster"})
    fork.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "DiTPipeline" and index["transformer"] == ["diffusers", "Transformer2DModel"]
    loaded = diffusers.DiTPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.transformer) is diffusers.Transformer2DModel
    assert np.array_equal(run(loaded), run(stock))
    again = DiTPipeline.from_pretrained(tmp_path)
    assert again.get_label_ids(["rooster"]) == [7] and class_names(again) == {7: "cock"}


def test_a_layer_that_is_reused_adds_the_kept_output_times_its_own_steps_gate():
    _, pipe = pipelines(num_layers=1)
    model, now = pipe.transformer, inputs(1)
    with torch.no_grad():
        attention, mlp = model(**inputs(0), reused=[None, None]).outputs
        block, t, y = model.transformer_blocks[0], now["timestep"], now["class_labels"]
        h = model.pos_embed(now["hidden_states"])
        norm, gate, shift, scale, mlp_gate = block.norm1(h, t, y, hidden_dtype=h.dtype)  # diffusers'
        conditioning = model.proj_out_1(F.silu(block.norm1.emb(t, y, hidden_dtype=h.dtype)))

        def last(h):
            """What `forward` gives of the tokens behind the last block, patch by patch."""
            out_shift, out_scale = conditioning.chunk(2, dim=1)
            h = model.proj_out_2(model.norm_out(h) * (1 + out_scale[:, None]) + out_shift[:, None])  # (3, 16, 2*2*8)
            sample = torch.zeros(3, 8, 8, 8)
            for k in range(16):
                patch = h[:, k].reshape(3, 2, 2, 8).permute(0, 3, 1, 2)
                row, column = 2 * (k // 4), 2 * (k % 4)
                sample[:, :, row : row + 2, column : column + 2] = patch
            return sample

        def mlp_of(h):
            return block.ff(block.norm3(h) * (1 + scale[:, None]) + shift[:, None])

        both = gate[:, None] * attention + h
        assert torch.equal(model(**now, reused=[attention, mlp]).sample, last(mlp_gate[:, None] * mlp + both))
        fresh_mlp = mlp_gate[:, None] * mlp_of(both) + both
        assert torch.equal(model(**now, reused=[attention, None]).sample, last(fresh_mlp))
        fresh = gate[:, None] * block.attn1(norm) + h
        assert torch.equal(model(**now, reused=[None, mlp]).sample, last(mlp_gate[:, None] * mlp + fresh))


def test_reusing_what_a_layer_would_give_anyway_changes_nothing():
    model, given = pipelines()[1].transformer, inputs()
    with torch.no_grad():
        full = model(**given, reused=STEP)
        for kept in range(16):
            reused = [full.outputs[k] if kept >> k & 1 else None for k in range(4)]
            output = model(**given, reused=reused)
            assert torch.equal(output.sample, full.sample)
            assert all(map(torch.equal, output.outputs, full.outputs))


def test_shares_go_from_what_was_kept_to_what_is_computed():
    model = pipelines()[1].transformer
    with torch.no_grad():
        old = model(**inputs(0), reused=STEP).outputs
        now = inputs(1)
        assert torch.equal(model(**now, reused=old, shares=torch.ones(4)).sample, model(**now).sample)
        assert torch.equal(model(**now, reused=old, shares=torch.zeros(4)).sample, model(**now, reused=old).sample)
        first = model(**now, reused=STEP).outputs[0]
        half = model(**now, reused=old, shares=torch.tensor([0.5, 1, 1, 1])).outputs[0]
    assert torch.equal(half, torch.lerp(old[0], first, 0.5))


def number(x):
    return torch.full((1, 1, 1), float(x))


def test_each_layer_reuses_what_it_gave_last():
    cache = LayerCacheRun(LayerCacheConfig(layers=["xx", "x.", ".x", ".."]), 4, 1)
    seen = []
    for i in range(4):
        given = cache.reused(i, 1)
        assert given is not None
        seen.append([None if one is None else one.item() for one in given])
        cache.keep(i, [number(10 * i + k) if one is None else one for k, one in enumerate(given)])
    assert seen == [[None, None], [None, 1], [10, None], [10, 21]]


def test_a_forecast_is_the_line_through_the_last_two_outputs():
    cache = LayerCacheRun(LayerCacheConfig(layers=["xx", "..", "xx", "..", ".."], forecast=1.0), 5, 1)
    seen = []
    for i, gave in enumerate([1, None, 3, None, None]):
        given = cache.reused(i, 1)
        assert given is not None
        seen.append(None if given[0] is None else given[0].item())
        cache.keep(i, [number(gave)] * 2 if gave else given)
    assert seen == [None, 1, None, 4, 5]


def test_a_run_of_full_steps_keeps_nothing():
    cache = LayerCacheRun(LayerCacheConfig(), 3, 2)
    assert cache.reused(0, 1) is None
    cache.keep(0, None)
    assert cache.reused(1, 1) is None


@pytest.mark.parametrize(
    ("config", "steps", "depth", "rows"),
    [
        (LayerCacheConfig(), 2, 2, ["xxxx", "xxxx"]),
        (LayerCacheConfig(2), 3, 2, ["xxxx", "....", "xxxx"]),
        (LayerCacheConfig(3, 1), 3, 4, ["xxxxxxxx", "xx....xx", "xx....xx"]),
        (LayerCacheConfig(2, 1, "attention"), 2, 3, ["xxxxxx", "xx.xxx"]),
        (LayerCacheConfig(2, reuse="mlp"), 2, 2, ["xxxx", "x.x."]),
        (LayerCacheConfig(layers=["xx", ".x"]), 2, 1, ["xx", ".x"]),
    ],
)
def test_descriptions_say_which_layers_are_computed(config, steps, depth, rows):
    table = config.table(steps, depth)
    assert LayerCacheConfig.of_table(table).layers == tuple(rows)
    assert np.array_equal(LayerCacheConfig(layers=rows).table(steps, depth), table)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (LayerCacheConfig(), "N1"),
        (LayerCacheConfig(3, 1, "mlp"), "N3-m1-mlp"),
        (LayerCacheConfig(2, forecast=0.5, forecast_order=2), "N2-m0-f0.5o2"),
        (LayerCacheConfig(layers=("xxxx", "x..x"), forecast=1.0), "layers-f1"),
    ],
)
def test_descriptions_survive_json_and_have_names(config, name):
    again = LayerCacheConfig.from_json(json.loads(json.dumps(config.to_json())))
    assert again == config and hash(again) == hash(config)
    assert config.name() == name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"cache_interval": 0}, "cache_interval is 0; it must be a whole number of at least 1"),
        ({"cache_interval": 1.5}, "cache_interval is 1.5"),
        ({"outer_blocks": -1}, "outer_blocks is -1"),
        ({"reuse": "none"}, "reuse is 'none'; it must be one of both, attention, mlp"),
        ({"forecast": float("nan")}, "forecast is nan; it must be a number from -10 to 10"),
        ({"forecast": "1"}, "forecast is '1'"),
        ({"forecast_order": 4}, "forecast_order is 4"),
        ({"layers": []}, "layers must be a word for each step"),
        ({"layers": "xx"}, "layers must be a word for each step"),
        ({"layers": ["xx", "x"]}, r"layers\[1\] is 'x'"),
        ({"layers": ["xx", "xo"]}, r"layers\[1\] is 'xo'"),
        ({"layers": ["x.", "xx"]}, "the first step has nothing to reuse"),
        ({"layers": ["xx"], "cache_interval": 2}, "give it without cache_interval"),
    ],
)
def test_wrong_descriptions_are_refused_by_name(arguments, said):
    with pytest.raises(ValueError, match=said):
        LayerCacheConfig(**arguments)


@pytest.mark.parametrize("content", [[], "x", {"cache_interval": 2, "branch": 1}])
def test_json_that_describes_none_is_refused(content):
    with pytest.raises(ValueError, match="the description of a layer cache"):
        LayerCacheConfig.from_json(content)


def test_what_does_not_fit_the_run_is_refused():
    _, pipe = pipelines()
    for cache, said in (
        (LayerCacheConfig(layers=["xxxx"] * 3), "a schedule of 3 steps and 4 layers; this run has 4 steps"),
        (LayerCacheConfig(layers=["xx"] * 4), "a schedule of 4 steps and 2 layers"),
        (LayerCacheConfig(2, 1), "outer_blocks is 1, first and last, which leaves none of 2 blocks"),
    ):
        with pytest.raises(ValueError, match=said):
            run(pipe, cache=cache)
    for labels in ([], [1000], [-1]):
        with pytest.raises(ValueError, match="labels from 0 to 999"):
            run(pipe, labels)
    with pytest.raises(ValueError, match="reused is of 3 layers; this transformer has 4"):
        pipe.transformer(**inputs(), reused=[None] * 3)
    with pytest.raises(ValueError, match="takes timestep and class_labels alone"):
        pipe.transformer(**inputs(), encoder_hidden_states=torch.zeros(3, 1, 16))
    other = diffusers.Transformer2DModel(2, 8, in_channels=4, norm_num_groups=2, cross_attention_dim=16)
    with pytest.raises(ValueError, match="norm_type 'layer_norm' is not DiT's"):
        Transformer2DModel.sharing(other)


def test_directories_of_other_models_and_with_code_are_refused(tmp_path, capsys):
    stock, _ = pipelines()
    stock.save_pretrained(tmp_path / "model")
    assert stable_diffusion.main(["--model", str(tmp_path / "model"), "--device", "cpu", "--quiet"]) == 2
    assert "python -m dit.sample" in capsys.readouterr().err
    index = tmp_path / "model" / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "transformer": ["evil", "Evil"]}))
    (tmp_path / "model" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert sample.main(["--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]) == 2
    assert "was not loaded" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


def test_layers_have_the_macs_of_their_matrix_products():
    macs, tokens, width, text = layer_macs(LAYOUT), 16, 16, 256
    assert macs.attention == tokens * (4 * width**2) + 2 * tokens**2 * width
    assert macs.mlp == tokens * 8 * width**2
    conditioning = text * width + width**2  # of a timestep, in every block and at the end
    ends = tokens * width * (4 * 4) + tokens * width * (4 * 8) + 2 * width**2
    assert macs.rest == macs.depth * (conditioning + 6 * width**2) + conditioning + ends
    table = LayerCacheConfig(2, 1, "mlp").table(4, macs.depth)
    assert macs.total(table) == 4 * macs.full - 2 * 2 * macs.mlp
    assert macs.speed_up(table) == 4 * macs.full / macs.total(table)


def test_the_published_layout_has_the_macs_that_its_paper_prints():
    # 118.64 in DiT's paper, which computes the timestep's embedding once and not in every block.
    macs = layer_macs(XL2_256)
    blocks_more = 28 * (256 * 1152 + 1152**2)
    assert round((macs.full - blocks_more) / 1e9, 1) == 118.6 and macs.depth == 28
