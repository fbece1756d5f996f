"""Reads everyday image files, and combines images into one."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from .decoding import decode

SHOWN = 160  # pixels; smaller images are enlarged to at least this height
SIXTEEN = ("I;16", "I;16B", "I;16L", "I;16N")  # modes of 16 bits
OF_16_BITS = ("PNG", "PPM")  # formats that Pillow reads into mode I, with no more bits than that


def read_image(path: str | Path, mode: Literal["RGB", "L"] = "RGB") -> Image.Image:
    """The still image in a file, upright as its EXIF says: as `to_rgb` makes it, or with mode L as `to_mask` does.

    Raises:
        ValueError: it can't be read, or its values have no known range.
    """
    with warnings.catch_warnings(action="ignore"):  # Pillow's about odd files; the error says what matters
        picture = decode(path, upright=True)
        return (to_rgb if mode == "RGB" else to_mask)(picture, f"the image {path}")


def to_rgb(picture: Image.Image, name: str = "the image") -> Image.Image:
    """A picture of any mode in RGB: 16 bits scaled to 8, transparency composited onto white.

    Raises:
        ValueError: its values have no known range, or there is no conversion.
    """
    picture = _eight_bits(picture, name)
    if picture.has_transparency_data:
        picture = _convert(picture, "RGBA", name)
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return _convert(picture, "RGB", name)


def to_mask(picture: Image.Image, name: str = "the mask") -> Image.Image:
    """A picture of any mode as a mask of mode L, white where it is painted.

    The mask is the picture's opacity if it is transparent anywhere, else its luminance, 16 bits scaled to 8.

    Raises:
        ValueError: its values have no known range, or there is no conversion.
    """
    picture = _eight_bits(picture, name)
    if picture.has_transparency_data:
        alpha = _convert(picture, "RGBA", name).getchannel("A")
        if alpha.getextrema()[0] != 255:
            return alpha
    return _convert(picture, "L", name)


def fitted(
    picture: Image.Image, size: tuple[int, int], resample: Image.Resampling = Image.Resampling.LANCZOS
) -> Image.Image:
    """The picture resized to (width, height), cropped around its centre rather than stretched."""
    return ImageOps.fit(picture, size, resample)


def _eight_bits(picture: Image.Image, name: str) -> Image.Image:
    """A picture of 16 bits scaled to 8, in L or, if one value means transparency, LA; others unchanged."""
    if picture.mode in SIXTEEN or (picture.mode == "I" and picture.format in OF_16_BITS):
        values = np.asarray(picture).astype(np.uint32)
        grey = Image.fromarray(((values + 128) // 257).astype(np.uint8))
        if (transparent := picture.info.get("transparency")) is None:
            return grey
        return Image.merge("LA", (grey, Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))))
    if picture.mode in ("I", "F"):
        what = "floating-point numbers" if picture.mode == "F" else "numbers of 32 bits"
        raise ValueError(f"{name} holds {what}, whose white level is unknown; save it with 8 or 16 bits")
    return picture


def _convert(picture: Image.Image, mode: str, name: str) -> Image.Image:
    try:
        return picture.convert(mode)
    except ValueError as error:
        raise ValueError(f"{name} can't be used: {error}; save it as RGB") from None


def side_by_side(rows: list[list[Image.Image]], gap: int = 4) -> Image.Image:
    """Rows of images as one picture, small ones enlarged by an integer factor."""
    width, height = rows[0][0].size
    factor = max(1, -(-SHOWN // height))
    cell = (width * factor, height * factor)
    size = (len(rows[0]) * (cell[0] + gap) + gap, len(rows) * (cell[1] + gap) + gap)
    sheet = Image.new("RGB", size, "white")
    for j, row in enumerate(rows):
        for i, image in enumerate(row):
            sheet.paste(
                image.resize(cell, Image.Resampling.NEAREST), (gap + i * (cell[0] + gap), gap + j * (cell[1] + gap))
            )
    return sheet
