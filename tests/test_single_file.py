"""Checkpoints of one file: the same pipeline as the directory that they were made from, or one line."""

import json

import diffusers
import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPTokenizer

from common.shipped import SHAPES_SD
from ddpm.checkpoint import original_name, original_shape
from ldm.checkpoint import unet_name
from pipelines import StableDiffusionPipeline, StableDiffusionXLPipeline, tiny
from pipelines.loading import load_pipeline

WIDTH = tiny.TEXT_WIDTHS[1]
LAYOUT = {  # as CompVis describes it
    "model": {
        "params": {
            "linear_start": 0.00085,
            "linear_end": 0.012,
            "timesteps": 1000,
            "scale_factor": 0.18215,
            "unet_config": {
                "params": {
                    "image_size": 8, "in_channels": 4, "out_channels": 4, "model_channels": 32,
                    "attention_resolutions": [2, 1], "num_res_blocks": 1, "channel_mult": [1, 2], "num_heads": 4,
                    "use_spatial_transformer": True, "transformer_depth": 1, "context_dim": WIDTH, "legacy": False,
                },
            },
            "first_stage_config": {
                "params": {
                    "embed_dim": 4,
                    "ddconfig": {
                        "double_z": True, "z_channels": 4, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32,
                        "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
                    },
                },
            },
            "cond_stage_config": {"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder"},
        },
    },
}  # fmt: skip


@pytest.fixture
def stock():
    """A pipeline of that layout."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, attention_head_dim=4,
        cross_attention_dim=WIDTH, down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32,) * 4, layers_per_block=1, sample_size=64,
    )  # fmt: skip
    return diffusers.StableDiffusionPipeline(
        vae=vae, text_encoder=tiny.text_encoder(WIDTH), tokenizer=CLIPTokenizer.from_pretrained(tiny.TOKENIZER),
        unet=unet, scheduler=diffusers.PNDMScheduler(**tiny.NOISE, skip_prk_steps=True), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def as_one_file(stock):
    """Its weights under CompVis's names."""
    unet, levels = dict(stock.unet.config), len(stock.vae.config.block_out_channels)
    return {
        **{f"model.diffusion_model.{unet_name(n, unet)}": w for n, w in stock.unet.state_dict().items()},
        **{
            f"first_stage_model.{original_name(n, levels)}": w.reshape(original_shape(n, w.shape))
            for n, w in stock.vae.state_dict().items()
        },
        **{f"cond_stage_model.transformer.{n}": w for n, w in stock.text_encoder.state_dict().items()},
    }


@pytest.fixture
def cached(stock, tmp_path, monkeypatch):
    """Where transformers finds the text encoder's configuration and tokenizer, as after a download."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "openai" / "clip-vit-large-patch14"
    stock.text_encoder.config.save_pretrained(folder)
    stock.tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("kind", ["safetensors", "ckpt"])
def test_a_file_is_the_pipeline_that_it_was_made_from(kind, stock, cached, tmp_path):
    file, weights = tmp_path / f"model.{kind}", {n: w.contiguous() for n, w in as_one_file(stock).items()}
    if kind == "ckpt":
        torch.save({"state_dict": weights, "global_step": 7}, file)
    else:
        save_file(weights, file)
    (tmp_path / "model.yaml").write_text(json.dumps(LAYOUT))
    pipe = load_pipeline(StableDiffusionPipeline, file, dtype=torch.float32)
    assert isinstance(pipe, StableDiffusionPipeline)
    for name in ("unet", "vae", "text_encoder"):
        expected = getattr(stock, name).state_dict()
        for key, weight in getattr(pipe, name).named_parameters():
            assert torch.equal(weight, expected[key])
            weight.data = weight.data.clone()  # where weights lie in a file, kernels may add in another order
    pipe.text_encoder = stock.text_encoder  # the conversion's has attention by another kernel
    pictures = []
    for one in (stock, pipe):
        one.set_progress_bar_config(disable=True)
        settings = {"num_inference_steps": 3, "height": 64, "width": 64, "output_type": "pt"}
        pictures.append(one("a ring", **settings, generator=torch.Generator().manual_seed(0)).images)
    assert not pipe.unet.training and not pipe.vae.training
    assert torch.equal(*pictures)


def test_without_its_configuration_the_way_is_named(stock, cached, tmp_path):
    save_file({n: w.contiguous() for n, w in as_one_file(stock).items()}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"read from model\.yaml beside it .* connect once") as raised:
        load_pipeline(StableDiffusionPipeline, tmp_path / "model.safetensors", dtype=torch.float32)
    assert "\n" not in str(raised.value)


def test_a_file_of_another_kind_is_answered_with_its_script(stock, tmp_path):
    weights = {n.replace("cond_stage_model", "conditioner.embedders.0"): w for n, w in as_one_file(stock).items()}
    save_file({n: w.contiguous() for n, w in weights.items()}, tmp_path / "xl.safetensors")
    with pytest.raises(ValueError, match=r"is a StableDiffusionXL; run it with stable_diffusion_xl\.py"):
        load_pipeline(StableDiffusionPipeline, tmp_path / "xl.safetensors", dtype=torch.float32)
    save_file({n: w.contiguous() for n, w in as_one_file(stock).items()}, tmp_path / "sd.safetensors")
    with pytest.raises(ValueError, match=r"is a StableDiffusion; run it with stable_diffusion\.py"):
        load_pipeline(StableDiffusionXLPipeline, tmp_path / "sd.safetensors", dtype=torch.float32)


@pytest.mark.parametrize("name", ["unet/diffusion_pytorch_model.safetensors", "model_index.json"])
def test_a_file_that_is_no_checkpoint_is_one_line(name):
    with pytest.raises(ValueError, match=r"not a Stable Diffusion checkpoint|is a file"):
        load_pipeline(StableDiffusionPipeline, SHAPES_SD / name, dtype=torch.float32)


def test_a_file_that_wants_to_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("ran",)

    torch.save({"state_dict": {"x": Evil()}}, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match="it asks to run code"):
        load_pipeline(StableDiffusionPipeline, tmp_path / "evil.ckpt", dtype=torch.float32)
