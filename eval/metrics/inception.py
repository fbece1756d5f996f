"""The Inception network of 2015-12-05, in which FID, sFID, IS, precision and recall are measured.

The published figures come from two preparations of its input. `adm`: OpenAI's evaluator (TensorFlow 1) resizes
without half-pixel offsets and scales to (x − 128) / 128. `pytorch-fid`: resizes with them and scales to 2x/255 − 1. The
two give different FIDs, so every result carries the name of its own.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytorch_fid.inception
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.command_line import RunError
from common.digests import file_digest

from .published import FILE, INCEPTION, inception_weights

SIDE = 299  # pixels
SPATIAL_CHANNELS = 7  # of 17 × 17 each: 2023 numbers, about as many as the 2048 of the pooled features


class Features(NamedTuple):
    """Of a batch: pooled (B, D) float32, spatial (B, S) float32, class probabilities (B, C) float64, as arrays."""

    pooled: np.ndarray
    spatial: np.ndarray
    probabilities: np.ndarray


class InceptionFeatures:
    """Pooled (B, 2048) and spatial (B, 2023) features and 1008 class probabilities of uint8 images, in one pass.

    Args:
        variant: `adm` or `pytorch-fid`, how the input is prepared.
        weights: file of the weights; by default the published ones from torch.hub's cache, or else downloaded.

    Raises:
        ValueError: `weights` is not there or holds something else.
        RunError: no weights and no network, or a damaged file in the cache.
    """

    sizes = (2048, 2023)

    def __init__(
        self, variant: str, weights: str | Path | None = None, device: str | torch.device = "cpu", quiet: bool = False
    ) -> None:
        if variant not in ("adm", "pytorch-fid"):
            raise ValueError(f"unknown variant {variant!r} of Inception; there are adm and pytorch-fid")
        self.variant = variant
        self.device = torch.device(device)
        self.network, self.weights = load_inception(weights, quiet)
        self.network.to(self.device)
        # The class layer without its bias, as the evaluator's graph multiplies it; what is left ends in the pooling.
        self.classes = self.network.fc.weight
        self.network.fc = nn.Identity()
        self.network.Mixed_6d.branch1x1.register_forward_hook(self._keep_spatial)

    def _keep_spatial(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        self.spatial = output[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> Features:
        """Of uint8 images (B, H, W, 3)."""
        x = torch.from_numpy(np.array(images)).to(self.device).permute(0, 3, 1, 2).contiguous().float()
        if self.variant == "adm":
            x = (resize_tf1(x, SIDE) - 128) / 128
        else:
            x = 2 * F.interpolate(x / 255, size=(SIDE, SIDE), mode="bilinear", align_corners=False) - 1
        pooled = self.network(x)
        logits = pooled @ self.classes.T
        # float64 on the CPU, since not every device has it
        return Features(pooled.cpu().numpy(), self.spatial.cpu().numpy(), logits.cpu().double().softmax(dim=1).numpy())


def resize_tf1(x: Tensor, side: int) -> Tensor:
    """Images (B, C, H, W) to side × side as `tf.image.resize_bilinear` of TensorFlow 1 does it.

    Output pixel i lies at i · H / side of the input, not at (i + ½) · H / side − ½: the picture moves up and left.
    There is no low-pass filter when it shrinks.
    """
    for dim in (3, 2):  # TensorFlow interpolates along x first
        length = x.shape[dim]
        place = torch.arange(side, device=x.device, dtype=x.dtype) * (length / side)
        low = place.floor().long().clamp(max=length - 1)
        high = (low + 1).clamp(max=length - 1)
        weight = (place - low).view(-1, *[1] * (3 - dim))
        left = x.index_select(dim, low)
        x = left + (x.index_select(dim, high) - left) * weight
    return x


def load_inception(weights: str | Path | None = None, quiet: bool = False) -> tuple[Any, str]:
    """The network with its weights, in evaluation mode on the CPU, and the file's SHA-256. For errors, see above."""
    path = inception_weights(quiet=quiet) if weights is None else Path(weights)
    if not path.is_file():
        raise ValueError(f"there is no file of weights {path}")
    digest = file_digest(path)
    if f"sha256:{digest}" != INCEPTION.digest:
        if weights is None:
            raise RunError(f"{path} is damaged (its SHA-256 is {digest}); delete it and start again")
        print(f"note: {path} is not the published {FILE}; its figures compare with no others", file=sys.stderr)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        # The builder always downloads; it gets the file already read instead.
        with mock.patch.object(pytorch_fid.inception, "load_state_dict_from_url", lambda *_, **__: state):
            network = pytorch_fid.inception.fid_inception_v3()
    except (RuntimeError, pickle.UnpicklingError, EOFError, TypeError, AttributeError):
        raise ValueError(f"{path} does not hold the weights of the FID Inception network ({INCEPTION.url})") from None
    return network.eval().requires_grad_(False), digest
