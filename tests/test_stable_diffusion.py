"""The script as a user runs it: what it writes, and how it fails."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import stable_diffusion
from common.shipped import SHAPES_SD
from pipelines import StableDiffusionPipeline
from tests.killed import start
from tests.tiny import parts
from unets.cache.config import CacheConfig

FEW = ["--steps", "6", "--repeats", "1", "--warm-up", "0", "--quiet", "--prompt", "a large red ring", "--device", "cpu"]
ROOT = Path(stable_diffusion.__file__).parent


def run(tmp_path, *options):
    """Runs the script on the shipped model and returns its exit status and the folder it writes."""
    out = tmp_path / "out"
    return stable_diffusion.main([*FEW, "--out", str(out), *options]), out


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    return str(path)


def new_mask(tmp_path, size=(64, 64)):
    path = tmp_path / "mask.png"
    mask = Image.new("L", size)
    mask.paste(255, (16, 16, 48, 48))
    mask.save(path)
    return str(path)


def test_writes_both_rows_every_image_and_all_that_was_measured(tmp_path, capsys):
    status, out = run(tmp_path, "--prompt", "a small blue square", "--num-images", "2", "--cache-interval", "3")
    assert status == 0
    names = [f"{run}_{k:03d}.png" for run in ("baseline", "deepcache") for k in range(4)]
    assert sorted(p.name for p in out.iterdir()) == sorted([*names, "output.png", "result.json"])
    assert Image.open(out / "baseline_000.png").size == (64, 64)

    result = json.loads((out / "result.json").read_text())
    assert result["resolved"]["prompt"] == ["a large red ring", "a small blue square"]
    assert result["cache"] == CacheConfig(cache_interval=3, cache_branch_id=1).to_json()
    part = result["stages"]["pipeline"]
    assert part["seconds"]["baseline"]["full_steps"] == 7  # PLMS makes one call more than steps
    assert part["seconds"]["deepcache"]["full_steps"] == 2
    assert part["seconds"]["deepcache"]["retrieve_steps"] == 5
    full, retrieve = (part["operations"][f"{kind}_macs_with_attention"] for kind in ("full", "retrieve"))
    assert part["operations"]["bound"] == pytest.approx(7 * full / (2 * full + 5 * retrieve))
    assert len(result["distance"]["psnr"]) == 4

    # The distances are those of the images on disk, by the definition of PSNR.
    a, b = (np.asarray(Image.open(out / f"{run}_000.png"), float) for run in ("baseline", "deepcache"))
    assert result["distance"]["psnr"][0] == pytest.approx(10 * np.log10(255**2 / ((a - b) ** 2).mean()), rel=1e-5)

    printed = capsys.readouterr().out
    assert "4 images, 6 steps of PNDMScheduler, cpu, float32; DeepCache N3-m1\n" in printed
    starts = [line.split("  ")[0] for line in printed.splitlines()]
    for words in (
        "end-to-end",
        "U-Net",
        "text encoder",
        "VAE",
        "Steps",
        "Expected",
        "Images",
        "Peak memory",
        "Written",
    ):
        assert words in starts


def test_interval_1_gives_equal_images_and_says_so(tmp_path, capsys):
    status, out = run(tmp_path, "--cache-interval", "1")
    assert status == 0
    printed = capsys.readouterr().out
    assert "1 image, 6 steps of" in printed and "DeepCache N1-m1" in printed
    assert "pixel for pixel" in printed
    assert (out / "baseline_000.png").read_bytes() == (out / "deepcache_000.png").read_bytes()


@pytest.mark.slow
def test_the_same_call_gives_the_same_images_and_another_does_not_replace_them(tmp_path, capsys):
    _, out = run(tmp_path, "--num-images", "2")
    names = ["deepcache_000.png", "baseline_001.png"]
    first = [(out / name).read_bytes() for name in names]
    _, out = run(tmp_path, "--num-images", "2")
    assert [(out / name).read_bytes() for name in names] == first
    status, _ = run(tmp_path)
    assert status == 2 and "num_images was 2 and is now 1" in capsys.readouterr().err
    assert [(out / name).read_bytes() for name in names] == first


def test_an_image_and_a_mask_keep_what_is_outside_the_mask(tmp_path, picture):
    status, out = run(tmp_path, "--image", picture, "--strength", "0.5")
    assert status == 0
    part = json.loads((out / "result.json").read_text())["stages"]["pipeline"]
    assert part["seconds"]["baseline"]["full_steps"] == 4  # 3, and PLMS's one more
    status, out = run(tmp_path / "masked", "--image", picture, "--mask", new_mask(tmp_path), "--scheduler", "ddim")
    assert status == 0
    original, redrawn = (np.asarray(Image.open(p), float) for p in (picture, out / "deepcache_000.png"))
    changed = np.abs(original - redrawn).mean(-1)
    assert changed[24:40, 24:40].mean() > changed[:8].mean()


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        (["--non-uniform", "--center", "3", "--pow", "1.4", "--cache-interval", "2"], {"full_steps": 3}),
        (["--cache-steps", "0,2,3"], {"full_steps": 3}),
        (["--scheduler", "dpm++"], {"scheduler": "DPMSolverMultistepScheduler", "retrieve_steps": 4}),
        (["--dtype", "bfloat16", "--channels-last"], {"dtype": "torch.bfloat16"}),
        (["--guidance-scale", "4"], {"guidance_scale": 4.0}),
        (["--height", "32", "--width", "96"], {"size": (96, 32)}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_options_reach_the_run(tmp_path, options, seen):
    status, out = run(tmp_path, *options)
    assert status == 0
    result = json.loads((out / "result.json").read_text())
    found = {
        **result["resolved"],
        **result["stages"]["pipeline"]["seconds"]["deepcache"],
        "size": Image.open(out / "deepcache_000.png").size,
    }
    assert {name: found[name] for name in seen} == seen


def test_skipped_steps_are_counted_and_in_no_bound(tmp_path, capsys):
    status, out = run(tmp_path, "--cache-interval", "3", "--skip-interval", "3")
    assert status == 0
    assert "3 full, 1 retrieve, 3 skipped" in capsys.readouterr().out  # 0, 1 and 3; PLMS's one more; 2, 4 and 5
    part = json.loads((out / "result.json").read_text())["stages"]["pipeline"]
    full, retrieve = (part["operations"][f"{kind}_macs_with_attention"] for kind in ("full", "retrieve"))
    assert part["operations"]["bound"] == pytest.approx(7 * full / (3 * full + retrieve))


def test_a_negative_prompt_changes_the_images(tmp_path):
    images: list[bytes] = []
    for options in ([], ["--negative-prompt", "a red ring"]):
        _, out = run(tmp_path / str(len(images)), *options)
        images.append((out / "baseline_000.png").read_bytes())
    assert images[0] != images[1]


def test_without_out_the_folder_is_named_after_the_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert stable_diffusion.main([*FEW, "--cache-steps", "0,4", "--seed", "7"]) == 0
    (folder,) = (tmp_path / "outputs").iterdir()
    assert re.fullmatch(r"shapes-sd-own-6-steps0\.4-m1-seed7-[0-9a-f]{8}", folder.name)
    assert (folder / "result.json").is_file()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--cache-interval", "0"], "--cache-interval is 0"),
        (["--cache-branch-id", "12"], "skip branches 0 to 11"),
        (["--non-uniform", "--pow", "1.4"], "--center"),
        (["--pow", "1.4", "--center", "2"], "--non-uniform"),
        (["--cache-steps", "1,2"], "begin with 0"),
        (["--cache-steps", "0,6"], "numbered 0 to 5"),
        (["--height", "60"], "--height is 60"),
        (["--height", "0"], "--height is 0"),
        (["--width", "-8"], "--width is -8"),
        (["--seed", "-1"], "--seed is -1"),
        (["--pow", "1.0", "--center", "2", "--non-uniform"], "--pow is 1.0"),
        (["--center", "6", "--pow", "1.4", "--non-uniform"], "center is 6"),
        (["--width", "61"], "--width is 61"),
        (["--steps", "0"], "--steps is 0"),
        (["--steps", "1000"], "below the 1000 steps"),
        (["--scheduler", "magic"], "unknown scheduler 'magic'; choose from plms, ddim"),
        (["--mask", "mask.png"], "need --image"),
        (["--image", "nowhere.png"], "there is no image nowhere.png"),
        (["--image", __file__], "cannot read the image"),
        (["--model", "./nowhere"], "no directory ./nowhere"),
        (["--model", "nowhere"], "no directory nowhere"),
        (["--model", str(ROOT / "unets")], "has no model_index.json"),
        (["--model", __file__], "is a file"),
        (["--model", "someone/some-model"], "--model the path"),
        (["--device", "tpu"], "unknown --device 'tpu'; use cuda, mps or cpu"),
        (["--device", "cuda:99"], "--device cuda:99 is not available (available: "),
        (["--cpu-offload"], "needs --device cuda"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_a_wrong_call_ends_in_one_line_and_2_and_writes_nothing(tmp_path, capsys, options, named):
    status, out = run(tmp_path, *options)
    errors = capsys.readouterr().err.strip().split("\n")
    assert status == 2
    assert errors[-1].startswith("error: ")
    assert named in errors[-1]
    assert not out.exists()


def test_image_and_mask_of_different_sizes_are_refused(tmp_path, capsys, picture):
    status, out = run(tmp_path, "--image", picture, "--mask", new_mask(tmp_path, (32, 64)))
    assert status == 2
    assert "--mask is 32 × 64, --image 64 × 64" in capsys.readouterr().err
    assert not out.exists()


def test_a_folder_with_other_things_in_it_is_not_replaced(tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("three years of work")
    assert run(tmp_path)[0] == 2
    assert "something other than an earlier result" in capsys.readouterr().err
    assert (out / "thesis.txt").read_text() == "three years of work"


def test_an_inpainting_model_without_a_mask_is_refused(tmp_path, capsys):
    StableDiffusionPipeline(**parts(in_channels=9, out_channels=4)).save_pretrained(tmp_path / "model")
    assert run(tmp_path, "--model", str(tmp_path / "model"))[0] == 2
    assert "give --image and --mask" in capsys.readouterr().err


def test_a_strength_that_leaves_no_step_is_refused(tmp_path, capsys, picture):
    assert run(tmp_path, "--image", picture, "--strength", "0.1")[0] == 2
    assert "--strength is 0.1" in capsys.readouterr().err


def test_a_damaged_weight_file_is_named(tmp_path, capsys):
    shutil.copytree(SHAPES_SD, tmp_path / "model")
    weights = tmp_path / "model" / "text_encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert run(tmp_path, "--model", str(tmp_path / "model"))[0] == 2
    assert "cannot load" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["unet/diffusion_pytorch_model.safetensors", "tokenizer/merges.txt"])
def test_a_file_that_is_missing_is_a_wrong_call(tmp_path, capsys, missing):
    shutil.copytree(SHAPES_SD, tmp_path / "model")
    (tmp_path / "model" / missing).unlink()
    status, out = run(tmp_path, "--model", str(tmp_path / "model"))
    assert status == 2
    assert "is the directory complete?" in capsys.readouterr().err
    assert not out.exists()


def test_images_that_are_not_finite_end_in_1(tmp_path, capsys, monkeypatch):
    load = stable_diffusion.open_pipeline

    def spoilt(*args, **kwargs):
        pipe = load(*args, **kwargs)
        pipe.unet.conv_out.bias.data.fill_(float("nan"))
        return pipe

    monkeypatch.setattr(stable_diffusion, "open_pipeline", spoilt)
    status, out = run(tmp_path)
    assert status == 1
    assert "images have non-finite values" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.slow
def test_interrupted_it_ends_in_130_and_leaves_no_half_result(tmp_path):
    printed, out = tmp_path / "printed", tmp_path / "out"
    process = start("stable_diffusion", ["--steps", "900", "--repeats", "50", "--out", str(out)], printed=printed)
    while not printed.exists() or "DeepCache N" not in printed.read_text():  # loaded, about to run
        assert process.is_alive()
        time.sleep(0.01)
    time.sleep(1)
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode == 130
    assert list(tmp_path.iterdir()) == [printed]
