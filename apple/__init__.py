"""Stable Diffusion 1.x and 2.x with DeepCache in MLX, Apple's array library, from the same diffusers directories.

Arrays are channels last: latents (B, H, W, 4), where torch has (B, 4, H, W).
"""
