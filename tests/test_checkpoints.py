"""Published checkpoints: every name accounted for, outputs those of the original, damaged and hostile files."""

import dataclasses
import hashlib
import json
import math
import os
import pickle
import sys
import types
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, VQModel
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import ddpm.checkpoint
import ldm.checkpoint
from common.safe_load import read_checkpoint, shapes_of
from ddpm.checkpoint import from_diffusers, load_unet, original_name, original_shape
from ddpm.configs import CIFAR10, CONFIGS, LSUN_BEDROOM
from ldm import convert
from ldm.checkpoint import CIN256, SCHEDULE, Layout, load_pipeline, original_names
from tests.original_models import Weights, ddpm_unet, ldm_unet, vq_decode, vq_encode
from unets import UNet2DModel

DATA = Path(__file__).parent / "data"
NARROW = dataclasses.replace(
    CIFAR10, unet={**CIFAR10.unet, "block_out_channels": (32, 64, 96, 64)}, name="narrow", file="narrow.ckpt"
)
NARROW_LDM = Layout(
    unet={**CIN256.unet, "block_out_channels": (32, 64, 96, 128), "cross_attention_dim": 24, "sample_size": 8},
    vqvae={**CIN256.vqvae, "block_out_channels": (32, 64, 96), "num_vq_embeddings": 40},
    class_embedder={"num_classes": 11, "embedding_dim": 24},
)


def keys(name):
    return {k: torch.Size(shape) for k, shape in json.loads((DATA / f"{name}_keys.json").read_text()).items()}


def random_state(shapes):
    """Weights that keep activations near 1; norms and biases differ from 1 and 0 so that a lost one shows."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator)
        fan_in = math.prod(shape[1:])
        norm = len(shape) == 1 and name.endswith("weight")
        state[name] = 1 + 0.2 * value if norm else 0.2 * value if len(shape) == 1 else value / fan_in**0.5
    return state


def ddpm_shapes(config):
    levels = len(config.unet["block_out_channels"])
    return {original_name(n, levels): original_shape(n, s) for n, s in shapes_of(UNet2DModel, config.unet).items()}


def ldm_state(layout):
    names = original_names(layout)
    state = random_state({there: shape for model in names.values() for there, shape, _ in model.values()})
    return state | {name: torch.zeros(1000) for name in SCHEDULE} | {"betas": ldm.checkpoint.new_scheduler().betas}


def assert_close(ours, oracle, tolerance=1e-10):
    """Both in float64, where another order of summation makes less than 1e-12; another epsilon makes 1e-6."""
    assert oracle.std() > 0.01
    assert (ours - oracle).abs().max() < tolerance * oracle.abs().max()


# The embedding of timestep 0 is exact; diffusers makes the others' in float32, which is off by ε · t in the angle.
TIMESTEPS = {0: 1e-10, 371: 1e-4}


# --- DDPM ------------------------------------------------------------------------------------------------------------


def test_cifar10_has_the_published_names_and_shapes():
    assert ddpm_shapes(CIFAR10) == keys("ddpm_cifar")
    assert len(ddpm_shapes(LSUN_BEDROOM)) == 450


@pytest.mark.parametrize("config", [CIFAR10, LSUN_BEDROOM], ids=["cifar10", "lsun"])
def test_conversion_round_trip_is_exact(config):
    shapes = keys("ddpm_cifar") if config is CIFAR10 else ddpm_shapes(config)
    state = {name: torch.randint(0, 256, shape, dtype=torch.uint8) for name, shape in shapes.items()}
    back = from_diffusers(ddpm.checkpoint.to_diffusers(state, config.unet), config.unet)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


@pytest.mark.parametrize("config", [CIFAR10, NARROW], ids=["cifar10", "narrow"])
def test_the_loaded_unet_is_the_original_one(tmp_path, config):
    state = random_state(ddpm_shapes(config))
    torch.save(state, tmp_path / "model.ckpt")
    unet = load_unet(tmp_path / "model.ckpt", config).double()
    x, w = torch.randn(1, 3, 16, 16, dtype=torch.float64), Weights(state)
    for timestep, tolerance in TIMESTEPS.items():
        t = torch.tensor([timestep])
        assert_close(unet(x, t).sample, ddpm_unet(w, x, t, levels=4), tolerance)
    assert w.used == state.keys()


@pytest.fixture(scope="module")
def narrow():
    return random_state(ddpm_shapes(NARROW))


def same_weights(unet, state):
    there = from_diffusers(unet.state_dict(), NARROW.unet)
    return there.keys() == state.keys() and all(torch.equal(there[name], state[name]) for name in state)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrap", [
    lambda s: s,
    lambda s: [{f"module.{n}": w for n, w in s.items()}, {"state": {}, "param_groups": []}, 7, 790000],
    lambda s: [{f"module.{n}": w + 1 for n, w in s.items()}, {"state": {}}, 7, 790000, s],
], ids=["state dict", "training loop", "training loop with moving average"])  # fmt: skip
def test_checkpoints_of_ddim_are_read(tmp_path, narrow, wrap, legacy):
    torch.save(wrap(narrow), tmp_path / "ckpt.pth", _use_new_zipfile_serialization=not legacy)
    unet = load_unet(tmp_path / "ckpt.pth", NARROW)
    assert isinstance(unet, UNet2DModel) and not unet.training
    assert same_weights(unet, narrow)


def test_directories_of_diffusers_are_read(tmp_path, narrow):
    torch.save(narrow, tmp_path / "model.ckpt")
    unet = load_unet(tmp_path / "model.ckpt", NARROW)
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path / "pipe" / "unet"):
        for config in (NARROW, None):
            assert same_weights(load_unet(path, config), narrow)
    assert load_unet(tmp_path / "pipe", dtype=torch.float16).dtype == torch.float16
    with pytest.raises(ValueError, match=r"block_out_channels is .*instead of"):
        load_unet(tmp_path / "pipe", CIFAR10)
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_unet(tmp_path)
    weights = tmp_path / "pipe" / "unet" / "diffusion_pytorch_model.safetensors"
    os.truncate(weights, weights.stat().st_size - 5)
    with pytest.raises(ValueError, match="is the directory complete"):
        load_unet(tmp_path / "pipe", NARROW)


def test_the_hubs_first_directories_are_read(tmp_path, narrow):
    """google/ddpm-ema-bedroom-256 and its like have the names that diffusers first gave to attention."""
    torch.save(narrow, tmp_path / "model.ckpt")
    unet = load_unet(tmp_path / "model.ckpt", NARROW)
    unet.save_pretrained(tmp_path / "unet", safe_serialization=False)
    first = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for name, weight in unet.state_dict().items():
        for new, old in first.items():
            name = name.replace(f".{new}.", f".{old}.")
        state[name] = weight
    torch.save(state, tmp_path / "unet" / "diffusion_pytorch_model.bin")
    assert same_weights(load_unet(tmp_path / "unet", NARROW), narrow)
    torch.save({"conv_in.weight": torch.zeros(1)}, tmp_path / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match=r"is missing; .*; and \d+ more"):
        load_unet(tmp_path / "unet", NARROW)


def test_another_architecture_is_refused_with_three_names(tmp_path, narrow):
    torch.save(narrow, tmp_path / "model.ckpt")
    with pytest.raises(ValueError) as error:
        load_unet(tmp_path / "model.ckpt", CIFAR10)
    assert "temb.dense.0.weight is (128, 32) instead of (512, 128)" in str(error.value)
    assert str(error.value).count("instead of") == 3
    changed = {name: w for name, w in narrow.items() if name != "conv_out.bias"} | {"extra": torch.zeros(1)}
    torch.save(changed, tmp_path / "changed.ckpt")
    with pytest.raises(ValueError, match=r"conv_out\.bias is missing; extra is not expected; give"):
        load_unet(tmp_path / "changed.ckpt", NARROW)
    torch.save({"epoch": 3}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="holds no state dict"):
        load_unet(tmp_path / "other.ckpt", NARROW)
    with pytest.raises(ValueError, match="name the configuration: cifar10, bedroom, church"):
        load_unet(tmp_path / "model.ckpt")


@pytest.mark.parametrize("name", ["ema_cifar10.ckpt", CIFAR10.file])
def test_a_published_name_with_other_content_is_refused(tmp_path, narrow, name, monkeypatch):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    torch.save(narrow, path)
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    with pytest.raises(ValueError) as error:
        load_unet(path, CIFAR10)
    assert all(text in str(error.value) for text in (md5, CIFAR10.md5, CIFAR10.url))
    monkeypatch.setitem(CONFIGS, "cifar10", dataclasses.replace(CIFAR10, md5=md5))
    assert same_weights(load_unet(path, NARROW), narrow)


# --- LDM -------------------------------------------------------------------------------------------------------------


def test_cin256_has_the_published_names_and_shapes():
    names = original_names(CIN256)
    for model, prefix, published in (
        ("unet", "model.diffusion_model.", keys("cin256_unet")),
        ("vqvae", "first_stage_model.", keys("cin256_first_stage")),
        ("class_embedder", "cond_stage_model.", {"embedding.weight": torch.Size([1001, 512])}),
    ):
        assert {there: shape for there, shape, _ in names[model].values()} == {
            prefix + n: s for n, s in published.items()
        }


def test_a_whole_cin256_checkpoint_leaves_no_name_over():
    published = {f"model.diffusion_model.{n}": s for n, s in keys("cin256_unet").items()}
    published |= {f"first_stage_model.{n}": s for n, s in keys("cin256_first_stage").items()}
    published |= {"cond_stage_model.embedding.weight": torch.Size([1001, 512])}
    state = {name: torch.empty(shape, device="meta") for name, shape in published.items()}
    state |= {name: torch.zeros(1000) for name in SCHEDULE if name != "betas"}
    state["betas"] = (torch.linspace(0.0015**0.5, 0.0195**0.5, 1000, dtype=torch.float64) ** 2).float()
    parts = ldm.checkpoint.to_diffusers(state)
    assert {model: len(part) for model, part in parts.items()} == {"unet": 688, "vqvae": 205, "class_embedder": 1}
    with pytest.raises(ValueError, match=r"model_ema\.decay is not expected"):
        ldm.checkpoint.to_diffusers(state | {"model_ema.decay": torch.zeros(())})
    with pytest.raises(ValueError, match="another noise schedule"):
        ldm.checkpoint.to_diffusers(state | {"betas": torch.linspace(1e-4, 0.02, 1000)})


@pytest.fixture(scope="module")
def ldm_checkpoint(tmp_path_factory):
    """As PyTorch Lightning writes it: the file also names one of its classes."""
    path = tmp_path_factory.mktemp("ldm") / "model.ckpt"
    state = ldm_state(NARROW_LDM)
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    vars(module)["ModelCheckpoint"] = type("ModelCheckpoint", (), {"__module__": module.__name__})
    with pytest.MonkeyPatch.context() as patch:
        for name in ("pytorch_lightning", "pytorch_lightning.callbacks"):
            patch.setitem(sys.modules, name, types.ModuleType(name))
        patch.setitem(sys.modules, module.__name__, module)
        torch.save(
            {"epoch": 1, "state_dict": state, "callbacks": {vars(module)["ModelCheckpoint"]: {"best": 1.0}}}, path
        )
    return path, state


def test_the_loaded_pipeline_is_the_original_model(ldm_checkpoint):
    path, state = ldm_checkpoint
    pipe = load_pipeline(path, layout=NARROW_LDM)
    labels = torch.tensor([3, 10])
    context = pipe.class_embedder(labels).double()
    assert torch.equal(context, state["cond_stage_model.embedding.weight"][labels][:, None].double())

    w = Weights(state, "model.diffusion_model.")
    x, unet = torch.randn(2, 3, 8, 8, dtype=torch.float64), pipe.unet.double()
    for timestep, tolerance in TIMESTEPS.items():
        t = torch.tensor([timestep, timestep])
        assert_close(unet(x, t, context).sample, ldm_unet(w, x, t, context), tolerance)
    assert w.used >= w.state.keys()

    w = Weights(state, "first_stage_model.")
    vqvae = pipe.vqvae.double()
    assert isinstance(vqvae, VQModel) and vqvae.config.scaling_factor == 1.0
    assert_close(vqvae.decode(x).sample, vq_decode(w, x, levels=3))
    pictures = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    assert_close(vqvae.encode(pictures).latents, vq_encode(w, pictures, levels=3))
    assert w.used == w.state.keys()


def test_the_scheduler_takes_the_papers_timesteps():
    scheduler = ldm.checkpoint.new_scheduler()
    scheduler.set_timesteps(250)
    assert scheduler.timesteps.tolist() == list(range(997, 0, -4))
    assert scheduler.final_alpha_cumprod == scheduler.alphas_cumprod[0]


def test_convert_writes_a_directory_that_loads_the_same(ldm_checkpoint, tmp_path, monkeypatch, capsys):
    path, _ = ldm_checkpoint
    monkeypatch.setattr(convert, "load_pipeline", lambda p, dtype: load_pipeline(p, dtype, NARROW_LDM))
    out = tmp_path / "converted"
    assert convert.main([str(path), "--out", str(out), "--quiet"]) == 0
    ours, theirs = load_pipeline(path, layout=NARROW_LDM), load_pipeline(out)
    for model in ("unet", "vqvae", "class_embedder"):
        there = getattr(theirs, model).state_dict()
        assert all(torch.equal(there[n], weight) for n, weight in getattr(ours, model).state_dict().items())
    assert theirs.scheduler.config.steps_offset == 1
    assert convert.main([str(path), "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert convert.main([str(path), "--out", str(tmp_path / "half"), "--dtype", "float16"]) == 0
    assert load_pipeline(tmp_path / "half", torch.float16).unet.dtype == torch.float16
    assert convert.main([str(tmp_path / "none.ckpt"), "--out", str(tmp_path / "x")]) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["converted", "half"]


# --- Damaged and hostile files ---------------------------------------------------------------------------------------


class Payload:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_a_file_that_would_run_code_is_refused_and_not_run(tmp_path, kind):
    path, mark = tmp_path / "model.ckpt", tmp_path / "ran"
    content = {"state_dict": Payload(f"touch {mark}")}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    for load in (lambda: load_unet(path, CIFAR10), lambda: load_pipeline(path)):
        with pytest.raises(ValueError, match=r"asks to run code, namely posix\.system; get the weights from a source"):
            load()
    for protocol in (0, 3, 4, 5):  # which torch does not write, and does not read either
        path.write_bytes(pickle.dumps(content, protocol=protocol))
        with pytest.raises(ValueError, match=r"asks to run code|is truncated or not a checkpoint"):
            load_pipeline(path)
    assert not mark.exists()


def test_a_directory_with_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path, narrow):
    torch.save(narrow, tmp_path / "model.ckpt")
    load_unet(tmp_path / "model.ckpt", NARROW).save_pretrained(tmp_path / "unet", safe_serialization=False)
    torch.save(Payload(f"touch {tmp_path / 'ran'}"), tmp_path / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot load"):
        load_unet(tmp_path / "unet", NARROW)
    assert not (tmp_path / "ran").exists()


@pytest.fixture(scope="module")
def small_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    state = {"a": torch.arange(12.0), "b": torch.ones(3, 2)}
    torch.save(state, folder / "zip.ckpt")
    torch.save(state, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    save_file(state, folder / "plain.safetensors")
    return sorted(folder.iterdir())


def test_all_three_formats_are_read(small_files):
    for path in small_files:
        assert torch.equal(read_checkpoint(path)["a"], torch.arange(12.0))


@settings(max_examples=60)
@given(data=st.data())
def test_a_truncated_file_is_one_clear_line(small_files, tmp_path_factory, data):
    path = data.draw(st.sampled_from(small_files))
    whole = path.read_bytes()
    cut = tmp_path_factory.mktemp("cut") / path.name
    cut.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(ValueError, match=r"is empty|is truncated or not a checkpoint") as error:
        read_checkpoint(cut)
    assert str(error.value).startswith(str(cut)) and "\n" not in str(error.value)
    assert str(error.value).endswith("download it again")


@settings(max_examples=60)
@given(content=st.binary(min_size=1, max_size=200), suffix=st.sampled_from([".ckpt", ".safetensors"]))
def test_noise_is_not_a_checkpoint(tmp_path_factory, content, suffix):
    path = tmp_path_factory.mktemp("noise") / f"model{suffix}"
    path.write_bytes(content)
    for load in (lambda: load_unet(path, CIFAR10), lambda: load_pipeline(path)):
        with pytest.raises(ValueError) as error:
            load()
        assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


@pytest.mark.parametrize("load", [lambda p: load_unet(p, CIFAR10), load_pipeline], ids=["ddpm", "ldm"])
def test_missing_empty_and_other_files(tmp_path, load):
    with pytest.raises(ValueError, match=r"there is no file .*none\.ckpt"):
        load(tmp_path / "none.ckpt")
    (tmp_path / "empty.ckpt").touch()
    with pytest.raises(ValueError, match="is empty; download it again from https://"):
        load(tmp_path / "empty.ckpt")
    torch.save({"epoch": 1}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"no state.dict"):
        load(tmp_path / "other.ckpt")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="has no"):
        load(tmp_path / "folder")
