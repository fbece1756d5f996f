"""Images from files, and several of them as one picture."""

from __future__ import annotations

from PIL import Image, UnidentifiedImageError

SHOWN = 160  # pixels; smaller images are enlarged to at least this height


def read_image(path: str, mode: str = "RGB") -> Image.Image:
    """The image file. Raises ValueError if it can't be read."""
    try:
        with Image.open(path) as image:
            if (frames := getattr(image, "n_frames", 1)) > 1:
                raise ValueError(f"{path} is a video of {frames} frames; give a still image")
            return image.convert(mode)
    except FileNotFoundError:
        raise ValueError(f"there is no image {path}") from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError) as error:
        raise ValueError(f"cannot read the image {path}: {error}; give a still image such as a PNG") from None


def side_by_side(rows: list[list[Image.Image]], gap: int = 4) -> Image.Image:
    """One picture of several rows of images, small ones enlarged by a whole factor."""
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
