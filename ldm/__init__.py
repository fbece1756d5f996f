"""LDM-4-G: the class-conditional latent model of ImageNet 256 × 256 (Rombach et al. 2022)."""

import common  # noqa: F401  # silences a warning that diffusers triggers at import
