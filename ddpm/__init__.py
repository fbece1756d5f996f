"""Unconditional pixel-space models: CIFAR-10 and LSUN (Ho et al. 2020), sampled with DDIM."""

import unets  # noqa: F401  # first, since it quiets what diffusers says at its import
