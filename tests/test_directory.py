"""Directories that were made to run code, are damaged, or are of another kind: one line, and nothing is loaded."""

import json
import shutil

import diffusers
import pytest
import torch

import main
import stable_diffusion
import stable_diffusion_xl
import stable_video_diffusion
import text2video_zero
from common.shipped import SHAPES_DDPM, SHAPES_LDM, SHAPES_SD
from ddpm import sample as ddpm_sample
from eval import generate, macs, similarity, speed
from ldm import sample as ldm_sample
from pipelines import StableDiffusionPipeline, tiny
from pipelines.directory import variant_of
from pipelines.loading import load_pipeline

QUIET = ["--quiet", "--device", "cpu"]
OPENERS = {  # the command, its options, and the directory that it takes
    "stable_diffusion.py": (stable_diffusion, [*QUIET, "--model"], SHAPES_SD),
    "text2video_zero.py": (text2video_zero, [*QUIET, "--model"], SHAPES_SD),
    "main.py": (main, [*QUIET, "--model_type", "sd1.5", "--model"], SHAPES_SD),
    "eval.generate": (generate, [*QUIET, "--num-images", "1", "--prompts", "shapes", "--model"], SHAPES_SD),
    "eval.similarity": (similarity, [*QUIET, "--model"], SHAPES_SD),
    "eval.speed": (speed, [*QUIET, "--model"], SHAPES_SD),
    "ldm.sample": (ldm_sample, [*QUIET, "--model"], SHAPES_LDM),
}
SCRIPTS_OF_OTHERS = {
    "stable_diffusion_xl.py": (stable_diffusion_xl, [*QUIET, "--model"], tiny.xl_parts, "StableDiffusionXLPipeline"),
    "stable_video_diffusion.py": (
        stable_video_diffusion, [*QUIET, "--model"], tiny.svd_parts, "StableVideoDiffusionPipeline",
    ),
}  # fmt: skip


def edit(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def own_library(model, code):
    edit(model / "model_index.json", unet=["evil", "Evil"])
    (model / "unet" / "evil.py").write_text(code)
    return "model_index.json was not loaded"


def library_of_a_known_name(model, code):
    (model / "unet" / "diffusers.py").write_text(code)
    return "diffusers.py is code"


def own_pipeline(model, code):
    edit(model / "model_index.json", _class_name=["evil", "Evil"])
    (model / "evil.py").write_text(code)
    return "model_index.json names ['evil', 'Evil'] as its class"


def pipeline_of_no_name(model, code):
    (model / "None.py").write_text(code)
    return "None.py is code"


def library_of_the_system(model, code):
    edit(model / "model_index.json", unet=["subprocess", "Popen"])
    return "['subprocess', 'Popen'] as unet"


def part_that_none_has(model, code):
    edit(model / "model_index.json", requests=["diffusers", "UNet2DConditionModel"])
    return "as requests"


ATTACKS = (
    own_library, library_of_a_known_name, own_pipeline, pipeline_of_no_name, library_of_the_system, part_that_none_has,
)  # fmt: skip


def refused(module, options, model, capsys, tmp_path):
    """The one line that a command ends in, which writes nothing."""
    out = tmp_path / "out"
    assert module.main([*options, str(model), "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and not out.exists()
    return line


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
@pytest.mark.parametrize("opener", OPENERS)
def test_no_directory_runs_code(opener, attack, tmp_path, capsys):
    module, options, model = OPENERS[opener]
    shutil.copytree(model, tmp_path / "model")
    said = attack(tmp_path / "model", f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert said in refused(module, options, tmp_path / "model", capsys, tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
@pytest.mark.parametrize("opener", SCRIPTS_OF_OTHERS)
def test_no_directory_of_another_family_runs_code(opener, attack, tmp_path, capsys):
    module, options, parts, cls = SCRIPTS_OF_OTHERS[opener]
    getattr(diffusers, cls)(**parts()).save_pretrained(tmp_path / "model")
    said = attack(tmp_path / "model", f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert said in refused(module, options, tmp_path / "model", capsys, tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("opener", "model", "said"),
    [
        ("stable_diffusion.py", SHAPES_LDM, "python -m ldm.sample"),
        ("stable_diffusion.py", SHAPES_DDPM, "python -m ddpm.sample"),
        ("stable_diffusion_xl.py", SHAPES_SD, "stable_diffusion.py, or main.py"),
        ("stable_video_diffusion.py", SHAPES_SD, "stable_diffusion.py, or main.py"),
        ("ldm.sample", SHAPES_SD, "stable_diffusion.py, or main.py"),
        ("eval.generate", SHAPES_LDM, "python -m ldm.sample"),
        ("main.py", SHAPES_DDPM, "python -m ddpm.sample"),
    ],
)
def test_a_model_of_another_kind_is_answered_with_its_script(opener, model, said, tmp_path, capsys):
    module, options, *_ = {**OPENERS, **SCRIPTS_OF_OTHERS}[opener]
    line = refused(module, options, model, capsys, tmp_path)
    assert said in line and "is a " in line


def test_a_model_of_a_kind_that_nothing_runs_is_named(tmp_path):
    shutil.copytree(SHAPES_SD, tmp_path / "model")
    edit(tmp_path / "model" / "model_index.json", _class_name="KandinskyPipeline")
    with pytest.raises(ValueError, match="is a KandinskyPipeline, which nothing here runs"):
        load_pipeline(StableDiffusionPipeline, tmp_path / "model", dtype=torch.float32)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model_index.json", "[" * 100_000),
        ("model_index.json", "[]"),
        ("model_index.json", '{"_class_name": 3}'),
        ("unet/config.json", "{" * 100_000),
        ("unet/config.json", "[1]"),
        ("unet/config.json", "\0"),
        ("vae/config.json", '"x"'),
        ("scheduler/scheduler_config.json", "{"),
        ("scheduler/scheduler_config.json", "[]"),
        ("tokenizer/tokenizer_config.json", "[" * 100_000),
        ("text_encoder/config.json", "{}"),
        ("unet/diffusion_pytorch_model.safetensors", "x" * 100),
        ("text_encoder/model.safetensors", ""),
    ],
)
def test_a_damaged_file_of_a_model_is_one_line(file, content, tmp_path):
    shutil.copytree(SHAPES_SD, tmp_path / "model")
    (tmp_path / "model" / file).write_text(content)
    with pytest.raises(ValueError) as raised:
        load_pipeline(StableDiffusionPipeline, tmp_path / "model", dtype=torch.float32)
    assert "\n" not in str(raised.value) and str(tmp_path / "model") in str(raised.value)


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("unet", {"sample_size": -1}),
        ("unet", {"block_out_channels": [0, 64, 128, 128]}),
        ("unet", {"block_out_channels": [64]}),
        ("unet", {"norm_num_groups": 0}),
        ("unet", {"norm_num_groups": 7}),
        ("unet", {"layers_per_block": 10**7}),
        ("unet", {"layers_per_block": [2, 10**7]}),
        ("unet", {"in_channels": 2**65}),
        ("vae", {"latent_channels": -4}),
        ("text_encoder", {"num_hidden_layers": 10**7}),
        ("text_encoder", {"vocab_size": 10**12}),
    ],
)
def test_sizes_that_no_model_has_are_one_line_at_once(part, changes, tmp_path):
    shutil.copytree(SHAPES_SD, tmp_path / "model")
    edit(tmp_path / "model" / part / "config.json", **changes)
    with pytest.raises(ValueError) as raised:
        load_pipeline(StableDiffusionPipeline, tmp_path / "model", dtype=torch.float32)
    assert "\n" not in str(raised.value) and str(tmp_path / "model") in str(raised.value)
    if part == "unet":
        assert macs.main(["--model", str(tmp_path / "model"), "--branches", "0", "--quiet"]) == 2


def test_the_sizes_of_a_ddpm_are_checked_too(tmp_path, capsys):
    shutil.copytree(SHAPES_DDPM, tmp_path / "model")
    edit(tmp_path / "model" / "unet" / "config.json", layers_per_block=10**7)
    options = [*QUIET, "--config", "cifar10", "--checkpoint"]
    assert "layers_per_block is 10000000" in refused(ddpm_sample, options, tmp_path / "model", capsys, tmp_path)


def test_a_directory_with_one_variant_alone_is_loaded_with_it(tmp_path):
    stock = diffusers.StableDiffusionPipeline.from_pretrained(SHAPES_SD, torch_dtype=torch.float16)
    stock.save_pretrained(tmp_path / "model", variant="fp16")
    assert variant_of(tmp_path / "model") == "fp16" and variant_of(SHAPES_SD) is None
    pipe = load_pipeline(StableDiffusionPipeline, tmp_path / "model", dtype=torch.float16)
    for name in ("unet", "vae", "text_encoder"):
        weights = getattr(pipe, name).state_dict()
        assert all(torch.equal(value, weights[key]) for key, value in getattr(stock, name).state_dict().items())


def test_of_several_variants_the_one_that_is_asked_for_is_loaded(tmp_path):
    stock = diffusers.StableDiffusionPipeline.from_pretrained(SHAPES_SD)
    stock.save_pretrained(tmp_path / "model")
    stock.unet.conv_in.bias.data.fill_(3)
    stock.save_pretrained(tmp_path / "model", variant="ema")
    for variant, expected in ((None, False), ("ema", True)):
        pipe = load_pipeline(StableDiffusionPipeline, tmp_path / "model", dtype=torch.float32, variant=variant)
        assert bool((pipe.unet.conv_in.bias == 3).all()) == expected
