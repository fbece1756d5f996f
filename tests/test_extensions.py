"""What goes beyond the paper, on the command line of the scripts."""

import argparse
import json

import numpy as np
import pytest

import ddpm.sample
import ldm.sample
import stable_diffusion
from common.shipped import SHAPES_LDM
from eval import generate
from image_sets.batches import Batch, to_uint8
from ldm.checkpoint import load_pipeline
from pipelines.cache_options import EXTENSIONS, add_cache_arguments, cache_config, cache_name
from unets.cache.config import PAPER, CacheConfig

FEW = ["--num-images", "2", "--device", "cpu", "--quiet"]


def parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_cache_arguments(parser, interval=5, branch=1, extensions=EXTENSIONS)
    return parser.parse_args(argv)


def test_extensions_that_are_off_are_not_among_the_settings():
    config = cache_config(parse())
    assert config == CacheConfig(cache_interval=5, cache_branch_id=1)
    assert config.to_json().keys() == set(PAPER)
    assert cache_name(parse(), config) == "N5-m1"


def test_extensions_that_are_on_are_among_the_settings_and_in_the_folders_name():
    args = parse(
        "--forecast", "1", "--reuse-guidance", "--guidance-stop", "0.9", "--refresh-interval", "4",
        "--refresh-branch-id", "5", "--reuse-attention",
    )  # fmt: skip
    config = cache_config(args)
    extensions = {
        "forecast": 1.0, "reuse_guidance": True, "guidance_stop": 0.9, "refresh_interval": 4, "refresh_branch_id": 5,
        "reuse_attention": True,
    }  # fmt: skip
    assert config.extensions == extensions
    assert config.to_json() == cache_config(parse()).to_json() | extensions
    name = "N5-forecast1-reuse-guidance-guidance-stop0.9-refresh-interval4-refresh-branch-id5-reuse-attention-m1"
    assert cache_name(args, config) == name


@pytest.mark.parametrize(
    ("call", "says"),
    [(["--forecast", "nan"], "--forecast is nan"),
     (["--guidance-stop", "1.5"], "--guidance-stop is 1.5")],
)  # fmt: skip
def test_out_of_range(call, says, tmp_path, capsys):
    for script in (stable_diffusion, ldm.sample, generate):
        assert script.main([*call, "--device", "cpu", "--quiet", "--out", str(tmp_path / "out")]) == 2
        assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("script", "call", "says"),
    [(stable_diffusion, ["--refresh-interval", "3"], "belong together"),
     (ddpm.sample, ["--refresh-interval", "3", "--refresh-branch-id", "99"], "refresh_branch_id is 99"),
     (generate, ["--refresh-interval", "3", "--refresh-branch-id", "1"], "--refresh-branch-id is 1; it must be above"),
     (ldm.sample, ["--reuse-attention"], "there is no attention to cache in the layers that branch 0 runs")],
)  # fmt: skip
def test_what_the_model_lacks_is_refused_before_anything_is_written(script, call, says, tmp_path, capsys):
    assert script.main([*call, "--device", "cpu", "--quiet", "--out", str(tmp_path / "out")]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_set_of_images_is_the_pipelines(tmp_path):
    more = ["--forecast", "1", "--reuse-guidance", "--steps", "10", "--cache-interval", "3"]
    assert ldm.sample.main([*more, *FEW, "--labels", "3,7", "--out", str(tmp_path / "out")]) == 0
    pipe = load_pipeline(SHAPES_LDM)
    (images,) = pipe(
        [3, 7], 10, guidance_scale=1.5, generator=Batch.of(0, [0, 1]).generators, output_type="pt", return_dict=False,
        cache_interval=3, cache_branch_id=0, forecast=1.0, reuse_guidance=True,
    )  # fmt: skip
    with np.load(tmp_path / "out" / "samples.npz") as archive:
        assert np.array_equal(archive["arr_0"], to_uint8(images * 2 - 1, [0, 1]))
    # Images made otherwise are other images, and are not mixed in.
    assert ldm.sample.main(["--steps", "10", *FEW, "--labels", "3,7", "--out", str(tmp_path / "out")]) == 2


def test_ddpm_forecasts(tmp_path):
    call = ["--steps", "10", "--cache-interval", "3", *FEW]
    assert ddpm.sample.main([*call, "--forecast", "1", "--out", str(tmp_path / "one")]) == 0
    assert ddpm.sample.main([*call, "--out", str(tmp_path / "none")]) == 0
    assert json.loads((tmp_path / "one" / "settings.json").read_text())["forecast"] == 1.0
    assert "forecast" not in json.loads((tmp_path / "none" / "settings.json").read_text())
    sets = []
    for name in ("one", "none"):
        with np.load(tmp_path / name / "samples.npz") as archive:
            sets.append(archive["arr_0"])
    assert not np.array_equal(*sets)


@pytest.mark.slow
def test_the_bound_counts_the_half_batches(tmp_path):
    call = ["--prompt", "a ring", "--steps", "6", "--repeats", "1", "--warm-up", "0", "--device", "cpu", "--quiet"]
    bounds = []
    for name, more in (("plain", []), ("reused", ["--reuse-guidance"]), ("stopped", ["--guidance-stop", "0"])):
        assert stable_diffusion.main([*call, *more, "--out", str(tmp_path / name)]) == 0
        operations = json.loads((tmp_path / name / "result.json").read_text())["stages"]["pipeline"]["operations"]
        bounds.append(operations["bound"])
    full, retrieve = operations["full_macs_with_attention"], operations["retrieve_macs_with_attention"]
    # 7 calls of PLMS, of which positions 0 and 5 are full.
    assert bounds[0] == pytest.approx(7 * full / (2 * full + 5 * retrieve), rel=1e-12)
    assert bounds[1] == pytest.approx(7 * full / (2 * full + 5 * retrieve / 2), rel=1e-12)
    # The first step runs both halves, to have a difference.
    assert bounds[2] == pytest.approx(7 * full / (1.5 * full + 5 * retrieve / 2), rel=1e-12)


@pytest.mark.slow
def test_the_bound_counts_refresh_steps_and_attention_that_is_not_run(tmp_path):
    call = [
        "--prompt",
        "a ring",
        "--steps",
        "6",
        "--repeats",
        "1",
        "--warm-up",
        "0",
        "--device",
        "cpu",
        "--quiet",
        "--cache-branch-id",
        "0",
    ]
    macs = {}
    runs: dict[str, list[str]] = {"plain": [], "deep": ["--cache-branch-id", "5"], "attention": ["--reuse-attention"]}
    runs["both"] = ["--reuse-attention", "--refresh-interval", "2", "--refresh-branch-id", "5"]
    for name, more in runs.items():
        assert stable_diffusion.main([*call, *more, "--out", str(tmp_path / name)]) == 0
        result = json.loads((tmp_path / name / "result.json").read_text())
        macs[name] = result["stages"]["pipeline"]["operations"]
    plain, shallow, deep = (macs[name]["retrieve_macs_with_attention"] for name in ("plain", "attention", "deep"))
    assert shallow < plain < deep
    full = macs["plain"]["full_macs_with_attention"]
    # 7 calls of PLMS: full at 0 and 5, refreshed at 2 and 4.
    assert macs["both"]["bound"] == pytest.approx(7 * full / (2 * full + 2 * deep + 3 * shallow), rel=1e-12)
