"""Whole runs in MLX: the pictures of the torch fork, and what the cache does in the loop."""

import json
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("mlx.core", reason="MLX is not installed; make mlx does it")

import mlx.core as mx
import numpy as np
import torch
from PIL import Image

from apple import sample
from apple.features import FeatureCache
from apple.pipeline import StableDiffusionPipeline
from apple.samplers import read_sampler
from common.shipped import PROMPTS, SHAPES_SD
from pipelines import StableDiffusionPipeline as TorchPipeline
from pipelines.loading import load_pipeline, new_scheduler
from tests.documents import blocks
from tests.layout import ROOT
from unets import CacheConfig
from unets.cache import features
from unets.cache.run import CacheRun

PROMPT = PROMPTS[True][:1]
GUIDANCE = 2.5
# Of values from 0 to 1, a quarter of a per cent of one of 255 levels. Each step agrees to 3e-6 (`test_apple_parts`),
# which guidance and the steps after it enlarge. Measured: up to 2e-5.
CLOSE = 1e-4


@pytest.fixture(scope="module")
def ours():
    return StableDiffusionPipeline.load(SHAPES_SD)


@pytest.fixture(scope="module")
def theirs():
    pipe = load_pipeline(TorchPipeline, SHAPES_SD, dtype=torch.float32, quiet=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def sampled(ours):
    """The pipeline with another sampler, until the end of the test."""
    before = ours.sampler, ours.scheduler_config

    def by(name):
        path = SHAPES_SD / "scheduler" / "scheduler_config.json"
        ours.sampler, ours.scheduler_config = read_sampler(path, name)
        return ours

    yield by
    ours.sampler, ours.scheduler_config = before


@pytest.fixture(scope="module")
def undecoded(ours):
    """The pipeline with latents for pictures, scaled so that few are clipped: the decoder takes as long as steps do."""
    return replace(ours, decoder=lambda latents: latents / 4)


@pytest.mark.parametrize(
    ("sampler", "cache"),
    [
        ("plms", {}),
        ("ddim", {"cache_interval": 3, "cache_branch_id": 3}),
        ("ddim", {"cache_steps": [0, 1, 3], "forecast": 1.0, "forecast_order": 1.5}),
    ],
)
def test_pictures_are_those_of_the_torch_fork(sampler, cache, sampled, theirs):
    pipe = sampled(sampler)
    theirs.scheduler = new_scheduler(sampler, theirs.scheduler.config)
    picture = pipe(PROMPT, pipe.noise(1, 7), num_steps=10, guidance_scale=GUIDANCE, cache=CacheConfig(**cache))
    generator = torch.Generator().manual_seed(7)
    expected = theirs(
        PROMPT, num_inference_steps=10, guidance_scale=GUIDANCE, generator=generator, output_type="np", **cache
    ).images
    assert picture.shape == expected.shape == (1, 64, 64, 3)
    assert np.abs(picture - expected).max() < CLOSE


def test_the_example_of_the_page_says_what_it_does(capsys, monkeypatch):
    """PLMS with N = 3 and m = 1, in MLX and in torch."""
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {}
    (example,) = (block for block in blocks(ROOT / "docs" / "apple.md") if block.info == "python")
    exec(compile(example.text, str(example), "exec"), names)
    assert np.abs(names["picture"] - names["expected"]).max() < CLOSE
    assert capsys.readouterr().out.startswith("largest difference: ")


def test_interval_1_is_a_loop_without_cache_exactly(undecoded):
    """And a negative prompt does nothing without guidance."""
    noise, config = undecoded.noise(1, 3), CacheConfig(cache_interval=1, cache_branch_id=2)
    picture = undecoded(PROMPT, noise, num_steps=2, guidance_scale=1, negative_prompt="a circle", cache=config)
    assert np.array_equal(picture, undecoded(PROMPT, noise, num_steps=2, guidance_scale=1))

    a, b, c = undecoded.steps(2)  # of PLMS, the first of which is made twice
    text = undecoded.encode(PROMPT)
    at_a = undecoded.unet(noise, a.timestep, text)[0]
    x = a.of_latents * noise + a.of_output * at_a
    at_b = undecoded.unet(x, b.timestep, text)[0]
    x = b.of_latents * noise + b.of_output * (0.5 * at_b + 0.5 * at_a)
    at_c = undecoded.unet(x, c.timestep, text)[0]
    x = c.of_latents * x + c.of_output * (1.5 * at_c - 0.5 * at_a)
    assert np.array_equal(picture, np.array(mx.clip(undecoded.decoder(x) / 2 + 0.5, 0, 1)))


def test_full_steps_are_those_of_the_torch_loop(ours, theirs):
    """Also of PLMS, whose one call more retrieves."""
    for config in (
        CacheConfig(),
        CacheConfig(3),
        CacheConfig(4, uniform=False, pow=1.4, center=4),
        CacheConfig(cache_steps=[0, 2, 9]),
        CacheConfig(20),
    ):
        assert ours.full_steps(config, 10) == CacheRun(config, theirs.unet, 10, 11).full_steps


def test_each_step_says_of_which_kind_it_is(undecoded):
    kinds = []
    config = CacheConfig(2, 0)
    undecoded(
        PROMPT, undecoded.noise(1, 0), num_steps=3, guidance_scale=1, cache=config,
        after_step=lambda i, full: kinds.append((i, full)),
    )  # fmt: skip
    assert kinds == [(0, True), (1, False), (2, True), (3, False)]


@pytest.mark.parametrize(
    ("extension", "name"),
    [
        ({"reuse_guidance": True}, "reuse_guidance"),
        ({"guidance_stop": 0.5}, "guidance_stop"),
        ({"refresh_interval": 2, "refresh_branch_id": 3}, "refresh_interval"),
        ({"refresh_steps": [2], "refresh_branch_id": 3}, "refresh_steps"),
        ({"reuse_attention": True}, "reuse_attention"),
        ({"skip_interval": 2}, "skip_interval"),
        ({"skip_steps": [2]}, "skip_steps"),
    ],
)
def test_other_extensions_are_refused_by_name(extension, name, ours):
    with pytest.raises(ValueError, match=f"{name} is not available here"):
        ours(PROMPT, ours.noise(1, 0), num_steps=4, cache=CacheConfig(3, **extension))


def test_other_arguments_out_of_range_are_named(ours):
    with pytest.raises(ValueError, match="cache_branch_id is 12"):
        ours(PROMPT, ours.noise(1, 0), num_steps=4, cache=CacheConfig(3, 12))
    with pytest.raises(ValueError, match="cache_steps has 4"):
        ours(PROMPT, ours.noise(1, 0), num_steps=4, cache=CacheConfig(cache_steps=[0, 4]))
    with pytest.raises(ValueError, match="1000 steps"):
        ours(PROMPT, ours.noise(1, 0), num_steps=1000)
    with pytest.raises(ValueError, match="latents for 2 images"):
        ours(PROMPT, ours.noise(2, 0), num_steps=4)


@pytest.mark.parametrize(
    ("forecast", "order"),
    [(0.0, 1.0), (1.0, 1.0), (0.7, 2.5), ([0.1 * i for i in range(8)], 2.0), ([[0.5, 0.0, 1.0]] * 8, 1.0)],
)
def test_forecasts_are_those_of_the_torch_loop(forecast, order):
    full = (0, 2, 3, 5)
    ours = FeatureCache(full, 8, forecast, order)
    theirs = features.FeatureCache(full, 8, forecast, order)
    for i in range(8):
        got, expected = ours.get(i), theirs.get(i, batch_size=2)
        assert (got is None) == (expected is None) == (i in full)
        if expected is None:
            feature = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(i))
            theirs.put(i, (feature,))
            ours.put(i, mx.array(feature.permute(0, 2, 3, 1).numpy()))
        else:
            # torch adds the terms one by one, each rounded to float32.
            assert np.allclose(np.array(got), expected[0].permute(0, 2, 3, 1).numpy(), rtol=1e-5, atol=1e-5)


def test_a_forecast_of_other_channels_is_refused():
    cache = FeatureCache([0, 1], 3, [[1.0, 1.0]] * 3)
    for i in range(2):
        cache.put(i, mx.zeros((1, 2, 2, 3)))
    with pytest.raises(ValueError, match="2 columns; the kept feature has 3 channels"):
        cache.get(2)


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_writes_pictures_and_measurements(tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--steps", "3", "--cache-interval", "2", "--cache-branch-id", "0", "--scheduler", "ddim"]
    options += ["--repeats", "1", "--warm-up", "0", "--quiet", "--out", str(out)]
    assert sample.main(options) == 0
    printed = capsys.readouterr().out
    assert "3 steps of ddim, MLX on" in printed and "speed-up" in printed
    names = {"output.png", "baseline_000.png", "deepcache_000.png", "result.json"}
    assert {path.name for path in out.iterdir()} == names
    assert Image.open(out / "deepcache_000.png").size == (64, 64)
    result = json.loads((out / "result.json").read_text())
    assert result["cache"]["cache_interval"] == 2 and result["speed_up"]["median"] > 0
    assert sample.main([*options, "--seed", "1"]) == 2
    assert "seed was 42 and is now 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", "nowhere"], "nowhere is not a pipeline"),
        (["--cache-branch-id", "12"], "cache_branch_id is 12"),
        (["--steps", "1000"], "1000 steps"),
        (["--cache-steps", "0,3,99"], "cache_steps has 99"),
    ],
)
def test_what_the_model_decides_is_one_line_too(options, said, tmp_path, capsys):
    assert sample.main([*options, "--quiet", "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and said in line
    assert not (tmp_path / "out").exists()
