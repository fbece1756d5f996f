"""Features of a run, and their similarity against numpy and by hand."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eval.metrics.similarity import features_of_run, share_above, similarity
from eval.similarity import main
from pipelines import StableDiffusionPipeline
from tests.tiny import parts


@given(st.integers(2, 6), st.integers(1, 3), st.integers(0, 2**31))
def test_similarity_is_the_mean_of_the_images_correlation_matrices(steps, images, seed):
    features = torch.randn(steps, images, 3, 4, 5, generator=torch.Generator().manual_seed(seed))
    matrix = similarity(features)
    # numpy's correlation of what has zero mean is the cosine.
    flat = features.flatten(2).double()
    flat = flat - flat.mean(2, keepdim=True)
    expected = np.mean([np.corrcoef(flat[:, k].numpy()) for k in range(images)], axis=0)
    np.testing.assert_allclose(similarity(flat), expected, atol=1e-12)  # both are sums in float64
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-12)
    np.testing.assert_allclose(matrix.diagonal(), 1, atol=1e-12)
    scale = torch.rand(steps, images, 1, 1, 1).double() + 0.5  # a cosine does not depend on lengths
    np.testing.assert_allclose(similarity(features * scale), matrix, atol=1e-12)


def test_similarity_by_hand():
    features = torch.tensor([[[3.0, 4.0], [1.0, 0.0]], [[4.0, 3.0], [0.0, 2.0]], [[-3.0, -4.0], [1.0, 0.0]]])
    # First image 24/25 and -1, second 0 and 1.
    expected = [[1, 0.48, 0], [0.48, 1, -0.48], [0, -0.48, 1]]
    np.testing.assert_allclose(similarity(features), expected, atol=1e-12)


def test_the_share_counts_the_other_steps_alone():
    matrix = torch.tensor([[1, 0.96, 0.94], [0.96, 1, 0.97], [0.94, 0.97, 1]])
    assert share_above(matrix).tolist() == [0.5, 1, 0.5]
    assert share_above(torch.ones(1, 1)).tolist() == [0]


def call(pipe, **cache):
    generator = torch.Generator().manual_seed(0)
    pipe.set_progress_bar_config(disable=True)
    return pipe("a red ring", num_inference_steps=4, generator=generator, output_type="latent", **cache).images


@pytest.mark.parametrize("branch", [0, 1, 5, 11])
def test_the_features_are_what_enters_the_up_layer_and_the_run_is_the_same(branch):
    pipe = StableDiffusionPipeline(**parts())
    alone = call(pipe)
    entered = []
    u = pipe.unet.up_layers[branch]
    hook = u.resnet.register_forward_pre_hook(lambda _, args: entered.append(args[0]))  # the feature, then the skip
    results = []
    features = features_of_run(lambda: results.append(call(pipe)), pipe.unet, branch)
    hook.remove()
    assert torch.equal(results[0], alone)
    assert len(features) == len(entered) == 5  # PLMS calls the U-Net once more
    assert features.shape[1] == 2  # both halves of guidance
    for feature, concatenated in zip(features, entered, strict=True):
        assert torch.equal(feature, concatenated[:, : feature.shape[1]])
    assert not pipe.unet._forward_hooks
    assert not pipe.unet._forward_pre_hooks


def test_a_unet_called_for_its_output_object_gives_one_without_the_feature():
    unet = StableDiffusionPipeline(**parts()).unet
    sample, context = torch.randn(1, 4, 8, 8), torch.randn(1, 77, unet.config.cross_attention_dim)
    outputs = []
    features = features_of_run(lambda: outputs.append(unet(sample, 5, context)), unet, 3)
    assert outputs[0].cached_feature is None
    assert torch.equal(outputs[0].sample, unet(sample, 5, context).sample)
    assert torch.equal(features[0], unet(sample, 5, context, cache_branch_id=3).cached_feature)


def test_a_unet_called_for_a_tuple_gives_one_without_the_feature():
    unet = StableDiffusionPipeline(**parts()).unet
    sample, context = torch.randn(1, 4, 8, 8), torch.randn(1, 77, unet.config.cross_attention_dim)
    outputs = []
    features = features_of_run(lambda: outputs.append(unet(sample, 5, context, return_dict=False)), unet, 3)
    (noise,) = outputs[0]
    assert torch.equal(noise, unet(sample, 5, context).sample)
    assert torch.equal(features[0], unet(sample, 5, context, cache_branch_id=3).cached_feature)


def test_a_run_that_retrieves_or_does_nothing_is_refused_and_leaves_no_hook():
    pipe = StableDiffusionPipeline(**parts())
    with pytest.raises(ValueError, match="cache_interval=1"):
        features_of_run(lambda: call(pipe, cache_interval=2, cache_branch_id=1), pipe.unet, 1)
    with pytest.raises(ValueError, match="must call the U-Net"):
        features_of_run(lambda: None, pipe.unet, 1)
    with pytest.raises(ValueError, match="cache_branch_id is 12"):
        features_of_run(lambda: call(pipe), pipe.unet, 12)
    assert not pipe.unet._forward_hooks


def test_the_script_writes_the_matrix_the_plot_and_the_summary(tmp_path, capsys):
    out = tmp_path / "figure2"
    options = ["--num-images", "2", "--quiet", "--device", "cpu", "--out", str(out)]
    assert main(["--steps", "6", *options]) == 0
    written = np.load(out / "similarity.npz")
    summary = json.loads((out / "similarity.json").read_text())
    assert written["similarity"].shape == (7, 7)
    np.testing.assert_array_equal(written["similarity"], summary["similarity"])
    np.testing.assert_array_equal(share_above(torch.from_numpy(written["similarity"])), written["share_above"])
    assert summary["mean_share_above"] == np.mean(written["share_above"])
    assert (out / "similarity.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in out.iterdir()) == ["similarity.json", "similarity.npz", "similarity.png"]
    assert "7 calls of the U-Net" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--branch", "12"], "cache_branch_id is 12"),
        (["--steps", "0"], "--steps is 0"),
        (["--steps", "1000"], "below the 1000 steps"),
        (["--num-images", "0"], "--num-images is 0"),
        (["--model", "nowhere"], "no directory nowhere"),
        (["--device", "abacus"], "--device"),
    ],
)
def test_a_wrong_call_ends_in_2_and_writes_nothing(tmp_path, capsys, options, said):
    out = tmp_path / "out"
    assert main(["--quiet", "--out", str(out), *options]) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()
