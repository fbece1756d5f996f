"""Random rows, and the Gaussian fitted to rows."""

import numpy as np

from eval.metrics.distributions import Gaussian


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def gaussian(rows):
    return Gaussian(rows.mean(0), np.cov(rows, rowvar=False))
