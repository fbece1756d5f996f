"""The pipeline of LDM-4-G: published schedule, stock parts put together by hand, the shipped model."""

import numpy as np
import pytest
import torch

from common.shipped import SHAPES_LDM
from ldm.checkpoint import load_pipeline
from tests.recorders import full_steps_of
from tests.tiny_ldm import LABELS, parts, pipeline, run


def test_timesteps_and_alphas_are_compviss():
    pipe = pipeline()
    assert pipe.set_timesteps(250, "cpu").tolist() == list(range(997, 0, -4))
    assert [len(pipe.set_timesteps(steps, "cpu")) for steps in (59, 91)] == [63, 100]
    betas = np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2
    # The scheduler multiplies in float32.
    assert np.allclose(pipe.scheduler.alphas_cumprod, np.cumprod(1 - betas), rtol=1e-4)
    assert pipe.scheduler.final_alpha_cumprod == pipe.scheduler.alphas_cumprod[0]
    with pytest.raises(ValueError, match="num_inference_steps is 1000"):
        pipe.set_timesteps(1000, "cpu")
    with pytest.raises(ValueError, match="num_inference_steps is 333"):
        pipe.set_timesteps(333, "cpu")


@pytest.mark.parametrize("steps", [10, 7])  # the second gives eight
@pytest.mark.parametrize("guidance_scale", [1.0, 1.5])
def test_it_is_ddim_by_its_formula_over_the_stock_parts(steps, guidance_scale):
    """Equation 12 of Song et al. in float64, with CompVis's alphas: the last ᾱ is that of timestep 0."""
    stock, pipe = parts(), pipeline()
    betas = torch.linspace(0.0015**0.5, 0.0195**0.5, 1000, dtype=torch.float64) ** 2
    alphas = (1 - betas).cumprod(0)
    stride = 1000 // steps
    timesteps = list(range(1, 1001, stride))
    x = torch.stack([torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(s)) for s in (0, 1)])
    expected = x.double()
    context = stock["class_embedder"](torch.tensor([4, 4, *LABELS]))
    for t in reversed(timesteps):
        e0, e1 = stock["unet"](torch.cat([expected] * 2).float(), t, context).sample.double().chunk(2)
        eps = e0 + guidance_scale * (e1 - e0)
        alpha, previous = alphas[t], alphas[max(t - stride, 0)]
        x0 = (expected - (1 - alpha).sqrt() * eps) / alpha.sqrt()
        expected = previous.sqrt() * x0 + (1 - previous).sqrt() * eps
    latents = run(pipe, num_inference_steps=steps, guidance_scale=guidance_scale, output_type="latent")
    # The scheduler and the U-Net's input are float32.
    assert (latents - expected).abs().max() < 1e-4 * expected.abs().max()
    decoded = stock["vqvae"].decode(latents / 0.5).sample  # which quantises
    images = torch.from_numpy(run(pipe, num_inference_steps=steps, guidance_scale=guidance_scale)).permute(0, 3, 1, 2)
    assert torch.equal(images, (decoded / 2 + 0.5).clamp(0, 1))


@pytest.mark.parametrize("plms", [False, True])
def test_the_cache_changes_images_and_interval_1_does_not(plms):
    pipe = pipeline(plms)
    plain = run(pipe)
    assert np.array_equal(run(pipe, cache_interval=1, cache_branch_id=5), plain)
    assert np.array_equal(run(pipe, cache_steps=range(10), cache_branch_id=5), plain)
    full = full_steps_of(pipe)
    latents = run(pipe, cache_interval=3, output_type="latent")
    assert [i for i, is_full in enumerate(full) if is_full] == [0, 3, 6, 9]
    assert not torch.equal(latents, run(pipe, output_type="latent"))


def test_an_image_does_not_depend_on_those_beside_it():
    pipe = pipeline()
    both, second = run(pipe, eta=0.5), run(pipe, LABELS[1:], seeds=(1,), eta=0.5)
    # Convolutions over another batch size may add in another order.
    assert np.allclose(both[1:], second, atol=1e-4)


def test_it_is_saved_and_loaded(tmp_path):
    pipe = pipeline()
    pipe.save_pretrained(tmp_path)
    again = load_pipeline(tmp_path)
    again.set_progress_bar_config(disable=True)
    for name in ("unet", "vqvae", "class_embedder"):
        there, here = getattr(again, name).state_dict(), getattr(pipe, name).state_dict()
        assert all(torch.equal(there[key], value) for key, value in here.items())
    # Weights read from a file lie at other addresses, for which a kernel may add in another order.
    assert np.allclose(run(again, cache_interval=3), run(pipe, cache_interval=3), atol=1e-5)
    assert '"UNet2DConditionModel"' in (tmp_path / "model_index.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"labels": [4, 0]}, "from 0 to 3"),
        ({"output_type": "jpeg"}, "output_type"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"cache_branch_id": 12}, "skip branches 0 to 11"),
        ({"cache_interval": 0}, "cache_interval is 0"),
        ({"latents": torch.zeros(2, 3, 4, 4)}, "latents are"),
    ],
)
def test_a_wrong_argument_is_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        run(pipeline(), **arguments)


def test_the_shipped_model_is_small_and_draws_its_classes():
    """Of the eight colours, the class's is the nearest to the picture's most unusual pixels."""
    from shapes.scenes import COLOURS

    assert sum(path.stat().st_size for path in SHAPES_LDM.rglob("*.safetensors")) <= 12e6
    pipe = load_pipeline(SHAPES_LDM)
    pipe.set_progress_bar_config(disable=True)
    labels = [shape * 8 + colour for shape in (0, 1) for colour in range(8)]
    images = run(pipe, labels, range(16), num_inference_steps=50, cache_interval=5) * 255
    palette = np.array(list(COLOURS.values()))
    right = 0
    for label, image in zip(labels, images, strict=True):
        background = np.median(image.reshape(-1, 3), axis=0)
        pixels = image.reshape(-1, 3)
        thing = np.median(pixels[np.argsort(np.abs(pixels - background).sum(1))[-120:]], axis=0)
        right += int(np.abs(palette - thing).sum(1).argmin() == label % 8)
    assert right >= 14
