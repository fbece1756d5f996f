"""KID against torchmetrics' MMD, and its standard error against the spread over newly drawn sets."""

import numpy as np
import pytest
import torch
from torchmetrics.image.kid import poly_mmd

from eval.metrics import kid as module
from eval.metrics.intervals import standard_error
from eval.metrics.kid import kid
from tests.statistics_of import normal


def theirs(a, b):
    return poly_mmd(torch.from_numpy(b), torch.from_numpy(a)).item()


def test_of_all_images_it_is_torchmetrics():
    """With as many on both sides and fewer than 1,000, every subset is the whole."""
    a, b = normal(0, 60, 8) + 0.3, normal(1, 60, 8)
    result = kid(a, b)
    assert result.value == pytest.approx(theirs(a, b), rel=1e-10)
    assert result.spread < 1e-12
    assert result.subset_size == 60
    assert kid(a.astype(np.float32), b).value == pytest.approx(result.value, rel=1e-5)


def test_subsets_are_torchmetrics_on_average(monkeypatch):
    monkeypatch.setattr(module, "SUBSET_SIZE", 50)
    a, b = normal(0, 300, 8) + 0.3, normal(1, 400, 8)
    result = kid(a, b)
    assert (result.subset_size, result) == (50, result)
    assert np.array_equal(kid(a, b).influence, result.influence)  # the same subsets again
    rng = np.random.default_rng(2)
    others = [theirs(rng.permutation(a)[:50], rng.permutation(b)[:50]) for _ in range(400)]
    assert result.spread == pytest.approx(np.std(others), rel=0.25)
    assert result.value == pytest.approx(np.mean(others), abs=4 * result.spread / 100**0.5)


def test_smaller_side_sets_the_size():
    assert kid(normal(0, 30, 4), normal(1, 90, 4)).subset_size == 30
    assert kid(normal(0, 1200, 4), normal(1, 1100, 4)).subset_size == 1000
    with pytest.raises(ValueError, match="KID of 1 and 90 images; it needs at least 2"):
        kid(normal(0, 1, 4), normal(1, 90, 4))


@pytest.mark.parametrize(("size", "subsets"), [(256, 5), (100, 10)])
def test_standard_errors_are_the_spread_over_sets(monkeypatch, size, subsets):
    """Of KID and of paired differences, where subsets have all images, or so few that some are in none.

    Within 25 %: 120 sets know it to 6.5 %. Not where KID is near 0: there it is too wide, as FID's.
    """
    monkeypatch.setattr(module, "SUBSETS", subsets)
    monkeypatch.setattr(module, "SUBSET_SIZE", size)
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(1000, 16))
    found: list[list] = []
    for _ in range(120):
        noise = rng.normal(size=(256, 16))
        similar = 0.98 * noise + 0.2 * rng.normal(size=noise.shape)
        a, b = kid(noise + 0.4, reference), kid(1.1 * similar + 0.5, reference)
        errors = standard_error(a.influence), standard_error(b.influence - a.influence)
        found.append([a.value, b.value - a.value, *errors])
    value, difference, error, paired = np.transpose(found)
    assert error.mean() == pytest.approx(value.std(ddof=1), rel=0.25)
    assert paired.mean() == pytest.approx(difference.std(ddof=1), rel=0.25)
    assert paired.mean() < error.mean()
    assert (np.abs(difference - difference.mean()) < 1.96 * paired).mean() > 0.87
