"""Unconditional pixel-space models: CIFAR-10 and LSUN (Ho et al. 2020), sampled with DDIM."""

import common  # noqa: F401  # silences a warning that diffusers triggers at import
