"""Text encoder, U-Net and decoder in MLX against torch, and what of a model's directory is refused."""

import json
import shutil

import pytest

pytest.importorskip("mlx.core", reason="MLX is not installed; make mlx does it")

import diffusers
import mlx.core as mx
import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

from apple import decoder, text_encoder
from apple import unet as mlx_unet
from apple.configs import read_config
from apple.loading import load_model
from apple.pipeline import StableDiffusionPipeline
from common.shipped import PROMPTS, SHAPES_LDM, SHAPES_SD
from pipelines.directory import check_config
from tests.tiny import inputs, stock_unet
from unets import UNet2DConditionModel

# Both compute in float32, whose sums of some thousand products are rounded in another order; relative to the largest
# value. Measured: up to 3e-6.
CLOSE = 2e-5
BRANCHES = 12


def channels_last(tensor):
    return mx.array(tensor.permute(0, 2, 3, 1).numpy())


def error(array, tensor):
    """The largest difference, relative to the largest value; (B, H, W, C) and (B, C, H, W), or both alike."""
    expected = (tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor).numpy()
    assert array.shape == expected.shape
    return float(np.abs(np.array(array) - expected).max() / np.abs(expected).max())


def random(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def pipe():
    return StableDiffusionPipeline.load(SHAPES_SD)


@pytest.fixture(scope="module")
def text(pipe):
    """The text encoder's in torch, of two prompts (2, 24, 128)."""
    encoder = transformers.CLIPTextModel.from_pretrained(SHAPES_SD / "text_encoder")
    tokens = pipe.tokenizer(PROMPTS[True][:2], padding="max_length", max_length=24, return_tensors="pt").input_ids
    return encoder(tokens)[0]


def test_the_text_encoder_agrees(pipe, text):
    assert error(pipe.encode(PROMPTS[True][:2]), text) < CLOSE


def test_a_text_encoder_with_gelu_and_a_buffer_of_positions_agrees(tmp_path):
    config = transformers.CLIPTextConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=8, hidden_act="gelu",
    )  # fmt: skip
    torch.manual_seed(0)
    stock = transformers.CLIPTextModel(config).eval()
    stock.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({**weights, "text_model.embeddings.position_ids": torch.arange(8)[None]}, tmp_path / "model.safetensors")
    found = read_config(tmp_path / "config.json", transformers.CLIPTextConfig, text_encoder.OPTIONS)
    unused = r"text_model\.embeddings\.position_ids"
    ours = load_model(
        text_encoder.TextEncoder, tmp_path, found, stem="model", prefix="text_model.", unused=unused
    )  # fmt: skip
    tokens = torch.arange(16).reshape(2, 8)
    assert error(ours(mx.array(tokens.numpy())), stock(tokens)[0]) < CLOSE


def test_the_decoder_agrees(pipe):
    vae = diffusers.AutoencoderKL.from_pretrained(SHAPES_SD / "vae")
    latents = random(1, 4, 8, 8)
    expected = vae.decode(latents / vae.config.scaling_factor).sample
    assert error(pipe.decoder(channels_last(latents)), expected) < CLOSE


def test_a_decoder_with_the_names_of_before_diffusers_0_18_is_the_same(pipe, tmp_path):
    shutil.copytree(SHAPES_SD / "vae", tmp_path / "vae")
    path = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(path)
    for now, before in old.items():
        weights = {name.replace(f".{now}.", f".{before}."): weight for name, weight in weights.items()}
    assert any(".proj_attn." in name for name in weights)
    save_file(weights, path)
    config = read_config(tmp_path / "vae" / "config.json", diffusers.AutoencoderKL, decoder.OPTIONS)
    ours = load_model(decoder.LatentDecoder, tmp_path / "vae", config, unused=r"(encoder|quant_conv)\.")
    latents = channels_last(random(1, 4, 4, 4))
    assert mx.array_equal(ours(latents), pipe.decoder(latents))


def test_full_and_retrieve_steps_agree_at_all_branches(pipe, text):
    """Retrieve steps are of another input, from what each side's own full step kept."""
    fork = UNet2DConditionModel.from_pretrained(SHAPES_SD / "unet")
    context, text = mx.array(text[:1].numpy()), text[:1]
    first, second = random(1, 4, 8, 8), 0.9 * random(1, 4, 8, 8) + 0.1
    assert pipe.unet.num_skip_branches == fork.num_skip_branches == BRANCHES
    for m in range(BRANCHES):
        expected = fork(first, 500, text, cache_branch_id=m)
        noise, kept = pipe.unet(channels_last(first), 500, context, m)
        assert error(kept, expected.cached_feature) < CLOSE
        # MLX computes what is asked for: the rest of a full step, which is the same at every branch, only once.
        assert m or error(noise, expected.sample) < CLOSE
        expected = fork(second, 480, text, cache_branch_id=m, cached_feature=expected.cached_feature)
        assert error(pipe.unet(channels_last(second), 480, context, m, kept)[0], expected.sample) < CLOSE


def random_unets(layout, folder, dtype=mx.float32):
    """A small U-Net with random weights, in torch and in MLX."""
    stock_unet(layout).save_pretrained(folder)
    config = read_config(folder / "config.json", diffusers.UNet2DConditionModel, mlx_unet.OPTIONS)
    ours = load_model(mlx_unet.UNet2DConditionModel, folder, config, dtype=dtype)
    return UNet2DConditionModel.from_pretrained(folder), ours


def test_keeping_and_retrieving_what_the_same_input_kept_change_nothing(tmp_path):
    _, ours = random_unets("sd15", tmp_path)
    arguments = inputs("sd15")
    step = (channels_last(arguments["sample"]), 321, mx.array(arguments["encoder_hidden_states"].numpy()))
    expected, nothing = ours(*step)
    assert nothing is None
    for m in range(BRANCHES):
        noise, kept = ours(*step, m)
        again, kept_again = ours(*step, m, kept)
        assert mx.array_equal(noise, expected) and mx.array_equal(again, expected)
        assert mx.array_equal(kept, kept_again)


@pytest.mark.parametrize("layout", ["sd15", "sd21", "ldm4", "bk_sdm_base"])
def test_other_layouts_agree(layout, tmp_path):
    """Linear projections, heads and block types of each level, one layer a block; at a size that is no square."""
    fork, ours = random_unets(layout, tmp_path)
    arguments = inputs(layout, 8, 16)
    x, context = channels_last(arguments["sample"]), mx.array(arguments["encoder_hidden_states"].numpy())
    for m in (0, fork.num_skip_branches // 2, fork.num_skip_branches - 1):
        expected = fork(**arguments, cache_branch_id=m)
        noise, kept = ours(x, 321, context, m)
        assert error(kept, expected.cached_feature) < CLOSE
        assert m or error(noise, expected.sample) < CLOSE  # once, as above
        expected = fork(**{**arguments, "timestep": 300}, cache_branch_id=m, cached_feature=expected.cached_feature)
        assert error(ours(x, 300, context, m, kept)[0], expected.sample) < CLOSE


def test_half_precision_is_near(tmp_path):
    fork, half = random_unets("sd15", tmp_path, mx.float16)
    arguments = inputs("sd15")
    context = mx.array(arguments["encoder_hidden_states"].numpy()).astype(mx.float16)
    noise = half(channels_last(arguments["sample"]).astype(mx.float16), 321, context)[0]
    assert noise.dtype == mx.float16
    # float16 has 11 bits, 5e-4, and there are some twenty layers on the way.
    assert error(noise.astype(mx.float32), fork(**arguments).sample) < 1e-2


def test_arguments_of_the_unet_out_of_range_are_named(pipe):
    x, context = mx.zeros((1, 8, 8, 4)), mx.zeros((1, 24, 128))
    with pytest.raises(ValueError, match="cache_branch_id is 12; this U-Net has the skip branches 0 to 11"):
        pipe.unet(x, 1, context, 12)
    with pytest.raises(ValueError, match="needs the cache_branch_id"):
        pipe.unet(x, 1, context, None, x)
    with pytest.raises(ValueError, match="divisible by 8"):
        pipe.unet(mx.zeros((1, 8, 12, 4)), 1, context)


# --- directories -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        ("unet/config.json", {"mid_block_type": None}, "mid_block_type"),
        ("unet/config.json", {"time_cond_proj_dim": 8}, "time_cond_proj_dim"),
        ("unet/config.json", {"addition_embed_type": "text_time"}, "addition_embed_type"),
        ("unet/config.json", {"down_block_types": ["AttnDownBlock2D"] * 4}, "AttnDownBlock2D"),
        ("unet/config.json", {"norm_num_groups": 7}, "norm_num_groups"),
        ("unet/config.json", {"attention_head_dim": 7}, "heads"),
        ("unet/config.json", {"layers_per_block": [2, 2, 2, 2]}, "cannot build"),
        ("unet/config.json", {"block_out_channels": ["x"] * 4}, "cannot build"),
        ("unet/config.json", {"in_channels": 9}, "an image to inpaint"),
        ("unet/config.json", {"layers_per_block": 3}, "is missing"),
        ("unet/config.json", {"layers_per_block": 10**7}, "layers_per_block"),
        ("vae/config.json", {"act_fn": "relu"}, "act_fn"),
        ("vae/config.json", {"up_block_types": ["AttnUpDecoderBlock2D"] * 4}, "AttnUpDecoderBlock2D"),
        ("text_encoder/config.json", {"hidden_act": "relu"}, "hidden_act"),
        ("model_index.json", {"_class_name": "StableDiffusionXLPipeline"}, "stable_diffusion_xl.py"),
        ("model_index.json", {"unet": ["evil", "Evil"]}, "was not loaded"),
    ],
)
def test_models_that_are_not_written_out_are_refused_by_name(file, changes, said, tmp_path):
    shutil.copytree(SHAPES_SD, tmp_path / "model")
    path = tmp_path / "model" / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ValueError, match=said) as raised:
        StableDiffusionPipeline.load(tmp_path / "model")
    assert "\n" not in str(raised.value)


def test_damaged_and_missing_files_are_one_line(tmp_path):
    shutil.copytree(SHAPES_SD, tmp_path / "model")
    weights = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="is truncated or not a checkpoint"):
        StableDiffusionPipeline.load(tmp_path / "model")
    weights.unlink()
    with pytest.raises(ValueError, match="one safetensors file"):
        StableDiffusionPipeline.load(tmp_path / "model")
    (tmp_path / "model" / "tokenizer" / "vocab.json").write_text("[")
    with pytest.raises(ValueError, match=r"cannot load .*tokenizer"):
        StableDiffusionPipeline.load(tmp_path / "model")
    with pytest.raises(ValueError, match="is not a pipeline"):
        StableDiffusionPipeline.load(tmp_path)
    with pytest.raises(ValueError, match=r"python -m ldm\.sample"):
        StableDiffusionPipeline.load(SHAPES_LDM)


def test_defaults_are_those_of_the_class(tmp_path):
    """Stable Diffusion 1.5's own file leaves most options out."""
    own = check_config(SHAPES_SD / "unet" / "config.json")
    few = {name: own[name] for name in ("block_out_channels", "norm_num_groups", "cross_attention_dim")}
    (tmp_path / "config.json").write_text(json.dumps(few))
    config = read_config(tmp_path / "config.json", diffusers.UNet2DConditionModel, mlx_unet.OPTIONS)
    stock = diffusers.UNet2DConditionModel.from_config(few).config
    assert all(config[name] == stock[name] for name in mlx_unet.OPTIONS)
