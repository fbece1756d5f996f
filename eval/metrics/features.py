"""Feature extractors for sets of images: Inception; for pictures of coloured shapes, the shipped CLIP scorer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from common.digests import file_digest
from common.shipped import SHAPES_CLIP
from shapes.scenes import BACKGROUNDS, COLOURS, PLACES, RADII, SHAPES, Scene, Thing

from .inception import SPATIAL_CHANNELS, Features, InceptionFeatures

if TYPE_CHECKING:
    import open_clip

VARIANTS = ("adm", "pytorch-fid", "shapes")


class Extractor(Protocol):
    """Turns uint8 images (B, H, W, 3) into features.

    `weights` is the SHA-256 of its weights, `sizes` how many pooled and spatial features there are.
    """

    variant: str
    weights: str
    sizes: tuple[int, int]

    def __call__(self, images: np.ndarray, /) -> Features: ...


def open_extractor(
    variant: str, weights: str | Path | None = None, device: str | torch.device = "cpu", quiet: bool = False
) -> Extractor:
    """The extractor of that name, one of `VARIANTS`.

    Args:
        weights: file of Inception's weights, see `InceptionFeatures`.

    Raises:
        ValueError: unknown variant, or `weights` that don't belong to it.
        RunError: the weights can't be downloaded.
    """
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; there are {', '.join(VARIANTS)}")
    if variant != "shapes":
        return InceptionFeatures(variant, weights, device, quiet)
    if weights is not None:
        raise ValueError("the variant shapes has its own weights; leave --weights out")
    return ShapesFeatures(device)


class ShapesFeatures:
    """The image side of assets/shapes-clip: for the small models of this repository, where Inception says little.

    Pooled: the image embedding before it is normalised (B, 128). Spatial: the first seven channels after the third
    stage, 4 × 4 each (B, 112). Classes: the 40 pairs of colour and shape; the probabilities of one are the softmax, at
    the model's own temperature, of the cosine to the mean embedding of all captions with one such thing.
    The figures say nothing outside this repository.
    """

    variant = "shapes"
    sizes = (128, 112)

    def __init__(self, device: str | torch.device = "cpu") -> None:
        import open_clip  # takes seconds, which a command that scores nothing should not

        name = f"local-dir:{SHAPES_CLIP}"
        self.device = torch.device(device)
        self.model, self.transform = open_clip.create_model_from_pretrained(name, device=self.device)
        self.model.eval()
        self.weights = file_digest(SHAPES_CLIP / "open_clip_model.safetensors")
        self.classes = self._classes(open_clip.get_tokenizer(name))
        self.model.visual.layer3.register_forward_hook(self._keep_spatial)

    @torch.inference_mode()
    def _classes(self, tokenizer: open_clip.SimpleTokenizer) -> Tensor:
        """The embeddings (40, 128) of a colour and a shape."""
        rows = []
        for colour in COLOURS:
            for shape in SHAPES:
                captions = [
                    Scene((Thing(size, colour, shape),), place, background).caption
                    for size in RADII
                    for place in PLACES
                    for background in BACKGROUNDS
                    if background != colour  # the renderer never draws such a scene
                ]
                rows.append(self.model.encode_text(tokenizer(captions).to(self.device), normalize=True).mean(0))
        return F.normalize(torch.stack(rows), dim=1)

    def _keep_spatial(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        self.spatial = output[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)

    def _prepared(self, images: np.ndarray) -> Tensor:
        return torch.stack([self.transform(Image.fromarray(image)) for image in images]).to(self.device)

    @torch.inference_mode()
    def stages(self, images: np.ndarray) -> list[Tensor]:
        """Outputs of the four stages of the image tower for uint8 images (B, H, W, 3), each (B, C, H', W')."""
        visual = self.model.visual
        stages = [visual.stem(self._prepared(images))]
        for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
            stages.append(layer(stages[-1]))
        return stages[1:]

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> Features:
        """Of uint8 images (B, H, W, 3)."""
        x = self._prepared(images)
        pooled = self.model.encode_image(x)
        logits = self.model.logit_scale.exp() * (F.normalize(pooled, dim=1) @ self.classes.T)
        return Features(pooled.cpu().numpy(), self.spatial.cpu().numpy(), logits.cpu().double().softmax(dim=1).numpy())
