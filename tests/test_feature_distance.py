"""The distance of images in the shipped CLIP scorer's features."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from eval.metrics.distances import feature_distance
from eval.metrics.features import ShapesFeatures
from shapes.scenes import random_scene, render


@pytest.fixture(scope="module")
def shapes():
    return ShapesFeatures()


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(3)
    return np.stack([render(random_scene(rng, held_out=True), rng)[0] for _ in range(24)])


def test_stages_are_the_networks(shapes, images):
    """What follows the last one makes of it the embedding."""
    stages = shapes.stages(images[:3])
    assert [tuple(stage.shape) for stage in stages] == [(3, 96, 16, 16), (3, 192, 8, 8), (3, 384, 4, 4), (3, 768, 2, 2)]
    with torch.inference_mode():
        np.testing.assert_array_equal(shapes.model.visual.attnpool(stages[-1]).numpy(), shapes(images[:3]).pooled)


def test_equal_images_are_at_distance_zero(shapes, images):
    assert feature_distance(images, images, shapes).tolist() == [0] * 24
    forth, back = feature_distance(images[:12], images[12:], shapes), feature_distance(images[12:], images[:12], shapes)
    assert np.array_equal(forth, back)
    assert (forth > 0.05).all()
    assert (forth <= 2).all()
    np.testing.assert_allclose(feature_distance(images[:12], images[12:], shapes, batch_size=5), forth, rtol=1e-3)


def test_it_grows_with_noise_and_blur(shapes, images):
    noise = np.random.default_rng(0).normal(size=images.shape)
    noisy = [(images + s * noise).clip(0, 255).round().astype(np.uint8) for s in (2, 5, 10, 20, 40)]
    blurred = [
        np.stack([np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(r))) for image in images])
        for r in (0.5, 1, 2, 4)
    ]
    for family in (noisy, blurred):
        means = [feature_distance(images, changed, shapes).mean() for changed in family]
        assert means[0] > 0
        assert means == sorted(means)


def test_pairs_have_one_shape(shapes, images):
    with pytest.raises(ValueError, match="pairs need the same"):
        feature_distance(images[:2], images[:3], shapes)
