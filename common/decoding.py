"""The one place where pictures are opened: whatever is wrong with a file becomes one line that names it."""

from __future__ import annotations

import functools
import os
import stat
from pathlib import Path

from PIL import ExifTags, Image, UnidentifiedImageError

STILLS = ("MPO", "PSD")  # formats of several pictures, the first of which is the whole: a phone's JPEG, merged layers
PAGED = ("TIFF", "DCX")
UPRIGHT = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(path: str | Path, *, upright: bool = False) -> Image.Image:
    """The still picture in a file, with pixels and mode as stored.

    Args:
        upright: rotate it as its EXIF says.

    Raises:
        ValueError: a missing, unreadable or broken file, not an image, several pages, or an animation.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise ValueError(f"there is no image {path}; check the path") from None
    except (OSError, ValueError) as error:  # an impossible file name raises ValueError
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"cannot read the image {path}: {reason}; check the path") from None
    if not stat.S_ISREG(mode):  # opening a pipe would block
        what = "a folder" if stat.S_ISDIR(mode) else "not a file"
        raise ValueError(f"cannot read the image {path}: it is {what}; give a still image such as a PNG")
    try:
        with Image.open(path, formats=_formats()) as picture:
            count = 1 if picture.format in STILLS else getattr(picture, "n_frames", 1)
            picture.load()
            turn = UPRIGHT.get(picture.getexif().get(ExifTags.Base.Orientation, 1)) if upright else None
            upright_picture = picture if turn is None else picture.transpose(turn)
    except Exception as error:
        # Pillow has no single exception for broken files: its decoders raise almost anything, even MemoryError.
        raise ValueError(f"cannot read the image {path}: {_reason(error)}") from None
    if count > 1:
        several = f"of {count} pages" if picture.format in PAGED else f"an animation of {count} frames"
        raise ValueError(f"the image {path} is {several}; give a still image: save the one you mean as a PNG")
    return upright_picture


@functools.cache
def _formats() -> list[str]:
    """The formats that Pillow reads itself. An EPS is a program, which it would have Ghostscript run."""
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
