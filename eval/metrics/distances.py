"""Distances between pairs of images."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image


def psnr(images: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """PSNR in dB (N,) of each image to its reference, both uint8 (N, H, W, 3). Equal images have 168 dB."""
    squared = ((images.astype(np.float64) - reference) ** 2).mean((1, 2, 3)).clip(1e-12)
    return -10 * np.log10(squared / 255**2)


def distance(reference: list[Image.Image], images: list[Image.Image]) -> dict[str, list[float]]:
    """PSNR in dB (infinite where images are equal) and SSIM, by torchmetrics, of each image to its reference."""
    # Imported late: it takes seconds, which a command that is only asked for its --help should not.
    from torchmetrics.functional.image import structural_similarity_index_measure

    result: dict[str, list[float]] = {"psnr": [], "ssim": []}
    for a, b in zip(reference, images, strict=True):
        x, y = (np.asarray(image.convert("RGB"))[None] for image in (a, b))
        if np.array_equal(x, y):
            result["psnr"].append(float("inf"))
            result["ssim"].append(1.0)
            continue
        theirs, ours = (torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2).double() for pixels in (x, y))
        ssim = structural_similarity_index_measure(ours, theirs, data_range=255.0)
        assert isinstance(ssim, torch.Tensor)  # it can return a map as well, if asked to
        result["psnr"].append(psnr(y, x).item())
        result["ssim"].append(ssim.item())
    return result
