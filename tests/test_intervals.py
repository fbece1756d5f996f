"""Standard errors and replicates: against derivatives, resampling, and the spread over newly drawn sets."""

import numpy as np
import pytest

from eval.metrics.distributions import Gaussian, RunningInceptionScore, frechet_distance
from eval.metrics.intervals import Z95, frechet_influence, replicates, standard_error
from eval.metrics.paired import replicate_difference
from tests.statistics_of import gaussian, normal


def spread(influence):
    """The standard error, if any."""
    error = standard_error(influence)
    assert error is not None
    return error


def weighted(rows, weights):
    return Gaussian(np.average(rows, axis=0, weights=weights), np.cov(rows, rowvar=False, aweights=weights, ddof=0))


@pytest.mark.parametrize("singular", [False, True])
def test_influence_is_the_derivative_of_the_distance(singular):
    """By more weight on one image after another; also if the features vary along only 3 of 6 directions."""
    rows = normal(0, 40, 6) @ normal(1, 6, 6)
    base = gaussian(normal(2, 50, 6) @ normal(3, 6, 6) + 0.5)
    if singular:
        rows = rows[:, :3] @ normal(4, 3, 6)
    equal, step = np.ones(40), 0.01 if singular else 1e-4  # beyond the rounding of eigenvalues that should be 0
    own = weighted(rows, equal)
    influence = frechet_influence(rows, own, base)
    for k in range(40):
        changed = [frechet_distance(weighted(rows, equal + sign * step * np.eye(40)[k]), base) for sign in (-1, 1)]
        slope = (changed[1] - changed[0]) / (2 * step) * 40
        assert influence[k] == pytest.approx(slope, rel=1e-3, abs=1e-3 * np.abs(influence).max())
    assert influence.sum() == pytest.approx(0, abs=1e-10 * np.abs(influence).max())


def test_influence_on_the_inception_score_is_its_derivative():
    """By one image more among 500 copies of all; two splits, of which the second is smaller."""
    logits = 2 * normal(0, 30, 6)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    running = RunningInceptionScore(20, influences=True)
    for part in np.split(probabilities, [7, 21]):
        running.update(part)
    influence = running.influence()
    for k in range(30):
        split = slice(0, 20) if k < 20 else slice(20, 30)
        copies = np.tile(probabilities[split], (500, 1))
        scores = []
        for rows in (copies, np.vstack([copies, probabilities[k]])):
            one = RunningInceptionScore(10**6)
            one.update(rows)
            scores.append(one.value() / 2)  # the mean over two splits
        slope = (scores[1] - scores[0]) * 500 * 30  # more weight on one image of 30
        assert influence[k] == pytest.approx(slope, rel=0.01, abs=0.01 * np.abs(influence).max())


def test_replicates_of_a_mean_are_those_of_a_bootstrap():
    a, b = normal(0, 200), normal(1, 200)
    one = replicates({"a": 5.0, "b": 1.0}, {"a": a - a.mean(), "b": b - b.mean()}, 2000)
    assert np.std(one["a"]) == pytest.approx(standard_error(a), rel=0.05)
    assert np.mean(one["a"]) == pytest.approx(5, abs=0.01)
    # The images drawn depend only on their number, so the replicates of a sum are the sums of the replicates.
    both = replicates({"sum": 6.0}, {"sum": a - a.mean() + b - b.mean()}, 2000)
    np.testing.assert_allclose(both["sum"], np.add(one["a"], one["b"]), atol=1e-12)
    mixed = replicates({"a": 5.0, "c": 0.0}, {"c": normal(2, 90), "a": a - a.mean()}, 20)
    assert mixed["a"] == one["a"][:20]
    assert standard_error(a[:1]) is None


class Simulation:
    """Sets of 256 images of 64 Gaussian features, against one reference of 2,000."""

    number, size = 256, 64

    def __init__(self, distance):
        """`distance` from the reference: of the mean, and of the features' standard deviations."""
        self.rng = np.random.default_rng(0)
        spectrum = np.arange(1, self.size + 1) ** -0.5
        self.mixing = np.linalg.qr(normal(1, self.size, self.size))[0] * spectrum
        self.shift = self.mixing @ normal(2, self.size) * distance
        self.scale = np.exp(normal(3, self.size) * distance)
        self.other = self.scale * np.exp(normal(4, self.size) * 0.05)
        self.base = gaussian(self.rng.normal(size=(2000, self.size)) @ self.mixing.T)

    def pair(self):
        """Two sets whose noise is correlated, as it is of a model with and without a cache."""
        noise = self.rng.normal(size=(self.number, self.size))
        similar = 0.98 * noise + 0.2 * self.rng.normal(size=noise.shape)
        return (
            (noise * self.scale) @ self.mixing.T + self.shift,
            (similar * self.other) @ self.mixing.T + 1.1 * self.shift,
        )

    def distance(self, rows):
        return frechet_distance(gaussian(rows), self.base)

    def influence(self, rows):
        return frechet_influence(rows, gaussian(rows), self.base)


@pytest.fixture(scope="module")
def far():
    simulation = Simulation(0.3)
    truth = np.array([[simulation.distance(rows) for rows in simulation.pair()] for _ in range(250)])
    return simulation, truth


def test_standard_error_of_fid_is_the_spread_over_sets(far):
    """Within 20 %: 250 sets know it to 4.5 %, and 256 images of 64 features are few."""
    simulation, truth = far
    errors = [spread(simulation.influence(simulation.pair()[0])) for _ in range(20)]
    assert np.mean(errors) == pytest.approx(truth[:, 0].std(ddof=1), rel=0.2)


def test_intervals_of_paired_differences_cover_the_true_one(far):
    """The true one is the mean over 250 pairs. Of 80 intervals at 95 %, fewer than 70 have it once in 2,000 times."""
    simulation, truth = far
    expected = (truth[:, 1] - truth[:, 0]).mean()
    covered, paired, independent = 0, [], []
    for _ in range(80):
        a, b = simulation.pair()
        estimates = [simulation.distance(rows) for rows in (b, a)]
        influences = [simulation.influence(rows) for rows in (b, a)]
        b_replicates, a_replicates = (
            replicates({"fid": estimate}, {"fid": influence})["fid"]
            for estimate, influence in zip(estimates, influences, strict=True)
        )
        difference = replicate_difference(estimates[0], estimates[1], b_replicates, a_replicates)
        covered += difference.low <= expected <= difference.high
        paired.append((difference.high - difference.low) / (2 * Z95))
        independent.append(np.hypot(*(spread(influence) for influence in influences)))
    assert covered >= 70
    assert np.mean(paired) == pytest.approx((truth[:, 1] - truth[:, 0]).std(ddof=1), rel=0.2)
    assert np.mean(paired) < np.mean(independent) / 3  # what the pairing is for


def test_resampling_fid_is_worse_near_its_bias():
    """Why replicates are by influences: resampling says twice the true spread, influences 1.4 times."""
    simulation = Simulation(0.02)
    true = np.std([simulation.distance(simulation.pair()[0]) for _ in range(150)], ddof=1)
    rng = np.random.default_rng(5)
    resampled, ours = [], []
    for _ in range(10):
        rows = simulation.pair()[0]
        scores = [simulation.distance(rows[rng.integers(0, len(rows), len(rows))]) for _ in range(40)]
        assert min(scores) > simulation.distance(rows)  # so a percentile interval misses the estimate
        resampled.append(np.std(scores, ddof=1))
        ours.append(spread(simulation.influence(rows)))
    assert 0.9 < np.mean(ours) / true < 1.6  # too wide, if anything
    assert np.mean(resampled) / true > 1.8
