"""LDM-4-G: the class-conditional latent model of ImageNet 256 × 256 (Rombach et al. 2022)."""
