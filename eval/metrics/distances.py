"""How far images are from those of a reference: PSNR and SSIM."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure


def psnr(images: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """PSNR of each image to its reference in dB: float64 (N,), of uint8 (N, H, W, 3).

    The mean squared error, in grey levels squared, is at least 1e-12: equal images are at 168.1 dB, not infinite.
    """
    squared = (images.astype(np.float64) - reference) ** 2
    return -10 * np.log10(squared.mean((1, 2, 3)).clip(1e-12) / 255**2)


def distance(reference: list[Image.Image], images: list[Image.Image]) -> dict[str, list[float]]:
    """PSNR in dB (infinite where images are equal) and SSIM of each image to its reference, by torchmetrics."""
    result: dict[str, list[float]] = {"psnr": [], "ssim": []}
    for a, b in zip(reference, images, strict=True):
        x, y = (torch.from_numpy(np.array(i.convert("RGB"))).permute(2, 0, 1)[None].double() for i in (a, b))
        same = torch.equal(x, y)
        ssim = structural_similarity_index_measure(y, x, data_range=255.0)
        assert isinstance(ssim, torch.Tensor)  # it can return a map as well, if asked to
        result["psnr"].append(float("inf") if same else peak_signal_noise_ratio(y, x, data_range=255.0).item())
        result["ssim"].append(1.0 if same else ssim.item())
    return result
