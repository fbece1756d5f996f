"""LDM-4-G: the class-conditional latent model of ImageNet 256 × 256 (Rombach et al. 2022)."""

import unets  # noqa: F401  # first, since it quiets what diffusers says at its import
