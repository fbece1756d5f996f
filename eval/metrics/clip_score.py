"""CLIP Score of images with their prompts, by a model of open_clip: 100 × cosine, 0 where it is negative."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from common.command_line import RunError, is_out_of_memory
from common.shipped import SHAPES_CLIP
from image_sets.reading import Source, count_images, image_batches, pt_prompts, read_prompts

MODEL, PRETRAINED = "ViT-g-14", "laion2b_s34b_b88k"  # section 5 of the paper


def compute(
    images: Source,
    prompts: Sequence[str] | Path | None = None,
    *,
    model: str = MODEL,
    pretrained: str = PRETRAINED,
    device: str | torch.device = "cpu",
    batch_size: int = 16,
    quiet: bool = False,
) -> dict[str, Any]:
    """CLIP Score of image k with prompt k. The model's own transform and context length are used, in float32.

    Args:
        prompts: the prompts, or a file of them (see `read_prompts`); None: those in the `.pt` that `images` is.
        model: of open_clip; or a folder in its format, with or without `local-dir:` before it; or `shapes`, the
            CLIP scorer of the shipped models.
        pretrained: open_clip's name of the weights, or a file. Ignored for a folder.

    Returns:
        model, pretrained, num_images, mean, standard_error (None of one image), per_image.

    Raises:
        ValueError: a different number of prompts and images, unknown names, unusable files.
        RunError: the weights can't be downloaded.
    """
    texts = prompts_for(images, prompts)
    if (number := count_images(images)) != len(texts):
        raise ValueError(f"{number} images and {len(texts)} prompts; there must be one for each")
    name, weights = _resolve(model, pretrained)
    network, transform, tokenizer = _load(name, weights, device)
    scores: list[float] = []
    with torch.inference_mode(), tqdm(total=number, desc="CLIP Score", unit="image", disable=quiet) as bar:
        for batch in image_batches(images, batch_size):
            pictures = torch.stack([transform(Image.fromarray(image)) for image in batch]).to(device)
            tokens = tokenizer(texts[len(scores) : len(scores) + len(batch)]).to(device)
            cosines = (
                network.encode_image(pictures, normalize=True) * network.encode_text(tokens, normalize=True)
            ).sum(1)
            scores += (100 * cosines).clamp(min=0).tolist()
            bar.update(len(batch))
    if not np.isfinite(scores).all():
        raise ValueError(f"the score of image {int(np.argmin(np.isfinite(scores)))} is not finite; check the weights")
    return {
        "model": model,
        "pretrained": weights,
        "num_images": number,
        "mean": statistics.fmean(scores),
        "standard_error": statistics.stdev(scores) / number**0.5 if number > 1 else None,
        "per_image": scores,
    }


def prompts_for(images: Source, prompts: Sequence[str] | Path | None) -> list[str]:
    """The prompts given, or in the file given; or those in the `.pt` that `images` is.

    Raises:
        ValueError: no prompts, or a file that can't be used.
    """
    if isinstance(prompts, Path):
        return read_prompts(prompts)
    if isinstance(prompts, str):
        raise ValueError(f"prompts is the text {prompts!r}; give a list of texts, or a pathlib.Path of a file")
    if prompts is not None:
        return list(prompts)
    if isinstance(images, np.ndarray) or Path(images).suffix != ".pt":
        raise ValueError("there are no prompts; pass --prompts FILE, one prompt a line")
    return pt_prompts(images)


def _resolve(model: str, pretrained: str) -> tuple[str, str | None]:
    """open_clip's names of model and weights."""
    import open_clip  # takes seconds, which a command that scores nothing should not

    if model == "shapes":
        return f"local-dir:{SHAPES_CLIP}", None
    folder = Path(model.removeprefix("local-dir:"))
    if model.startswith("local-dir:") or folder.is_dir():
        if not (folder / "open_clip_config.json").is_file():
            raise ValueError(f"{folder} is no model of open_clip: it has no open_clip_config.json")
        return f"local-dir:{folder}", None
    if model not in open_clip.list_models():
        raise ValueError(f"unknown model {model!r}; open_clip.list_models() names those there are")
    if pretrained not in (tags := open_clip.list_pretrained_tags_by_model(model)) and not Path(pretrained).is_file():
        raise ValueError(f"no weights {pretrained!r} of {model}; there are {', '.join(tags)}, or give a file")
    return model, pretrained


def _load(name: str, weights: str | None, device: str | torch.device) -> tuple[Any, Any, Any]:
    """The network in evaluation mode, its transform and its tokenizer."""
    import open_clip

    logging.disable(logging.ERROR)  # open_clip logs what it raises, besides raising it
    try:
        network, transform = open_clip.create_model_from_pretrained(name, pretrained=weights, device=device)
        return network.eval(), transform, open_clip.get_tokenizer(name)
    except Exception as error:  # readers of damaged files raise almost anything; so does a file that asks to run code
        if is_out_of_memory(error):
            raise
        what = name if weights is None else f"{weights} of {name}"
        reason = " ".join((str(error) or type(error).__name__).split())[:300]
        raise RunError(f"cannot load {what}: {reason}; without a network, pass --pretrained FILE") from None
    finally:
        logging.disable(logging.NOTSET)
