"""Distances between pairs of images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

if TYPE_CHECKING:
    from .features import ShapesFeatures


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
        assert isinstance(ssim, torch.Tensor)  # it can also return a map
        result["psnr"].append(psnr(y, x).item())
        result["ssim"].append(ssim.item())
    return result


def feature_distance(a: np.ndarray, b: np.ndarray, extractor: ShapesFeatures, batch_size: int = 64) -> np.ndarray:
    """How differently the shipped CLIP scorer sees each image and its partner, from 0 to 2 (N,).

    The form of LPIPS (Zhang et al. 2018) without its learned weights: after each of the four stages of the image tower
    the channels at a position are scaled to length 1; squared differences are summed over channels and averaged over
    positions and stages. The network knows coloured shapes alone, so the figures compare within this repository only.

    Args:
        a: uint8 images (N, H, W, 3).
        b: their partners.

    Raises:
        ValueError: different shapes.
    """
    if a.shape != b.shape:
        raise ValueError(f"images of shapes {a.shape} and {b.shape}; pairs need the same")
    distances = []
    for start in range(0, len(a), batch_size):
        pairs = zip(*(extractor.stages(images[start : start + batch_size]) for images in (a, b)), strict=True)
        stages = [(F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(1).mean((1, 2)) for x, y in pairs]
        distances.append(torch.stack(stages).mean(0).cpu().double())
    return torch.cat(distances).numpy()
