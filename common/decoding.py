"""The one place where pictures are opened: whatever is wrong with a file becomes one line that names it."""

from __future__ import annotations

import functools
import os
import stat
from pathlib import Path

from PIL import ExifTags, Image, UnidentifiedImageError

STILLS = ("MPO", "PSD")  # of several pictures, the first is the whole: a phone's JPEG, the sum of layers
PAGED = ("TIFF", "DCX")
UPRIGHT = {  # by EXIF's orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(path: str | Path, *, upright: bool = False) -> Image.Image:
    """The still picture in a file, its pixels and mode as they are stored.

    Args:
        upright: turned as its EXIF says.

    Raises:
        ValueError: no such file, not to be read, no picture, a broken one, several pages, an animation.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise ValueError(f"there is no image {path}; check the path") from None
    except (OSError, ValueError) as error:  # a name that no file can have is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"cannot read the image {path}: {reason}; check the path") from None
    if not stat.S_ISREG(mode):  # a pipe would be waited for
        what = "a folder" if stat.S_ISDIR(mode) else "not a file"
        raise ValueError(f"cannot read the image {path}: it is {what}; give a still image such as a PNG")
    try:
        with Image.open(path, formats=_formats()) as picture:
            count = 1 if picture.format in STILLS else getattr(picture, "n_frames", 1)
            picture.load()
            turn = UPRIGHT.get(picture.getexif().get(ExifTags.Base.Orientation, 1)) if upright else None
            upright_picture = picture if turn is None else picture.transpose(turn)
    except Exception as error:
        # Pillow has no one class for broken files: its decoders raise nearly everything, MemoryError too.
        raise ValueError(f"cannot read the image {path}: {_reason(error)}") from None
    if count > 1:
        several = f"of {count} pages" if picture.format in PAGED else f"an animation of {count} frames"
        raise ValueError(f"the image {path} is {several}; give a still image: save the one you mean as a PNG")
    return upright_picture


@functools.cache
def _formats() -> list[str]:
    """What Pillow reads by itself: of an EPS, it would have Ghostscript run the program that it is."""
    Image.init()
    return [name for name in Image.ID if name != "EPS"]


def _reason(error: Exception) -> str:
    """What is wrong, and the remedy."""
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels; make it smaller"
    if isinstance(error, MemoryError):
        return "there is not enough memory for it; make it smaller"
    if isinstance(error, UnidentifiedImageError):
        return "it is empty or of no known kind; give a still image such as a PNG"
    reason = " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())
    return f"{reason[:200]}; is the file whole? Give a still image such as a PNG"
