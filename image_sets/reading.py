"""Sets of images on disk, read a batch at a time: `.npz`, a folder, or `.pt` as the original DeepCache writes it."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image, ImageOps

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # more than 8 bits, which a conversion to RGB would clip

Source = str | Path | np.ndarray
"""Where images come from: a path, or uint8 (N, H, W, 3) in memory."""


def count_images(source: Source) -> int:
    """How many images there are, without decoding any.

    Raises:
        ValueError: no such source, none in it, or not images.
    """
    if isinstance(source, np.ndarray):
        return _checked("the array", source.shape, source.dtype)[0]
    path = _existing(source)
    if path.is_dir():
        return len(image_files(path))
    if path.suffix == ".pt":
        return len(_pt_images(path))
    with _NpzImages(path) as images:
        return images.shape[0]


def image_batches(
    source: Source, batch_size: int, limit: int | None = None, *, size: int | None = None
) -> Iterator[np.ndarray]:
    """The images in order as uint8 (B, H, W, 3), the last batch maybe smaller. No more than a batch is held in memory.

    An `.npz` has them as `arr_0`, (N, H, W, 3); a folder has PNG, JPEG or WEBP files, in subfolders too, and they come
    sorted by name; a `.pt` has them as `images`, (N, 3, H, W).

    Args:
        limit: no more images than this.
        size: resize the shorter side to `size` (bicubic) and cut out the centre, size × size.

    Raises:
        ValueError: no such source, none in it, an unreadable file, images of several sizes, wrong dtype or shape.
    """
    total = count_images(source)
    total = total if limit is None else min(limit, total)
    if isinstance(source, np.ndarray):
        batches: Iterable[np.ndarray] = (source[k : k + batch_size] for k in range(0, len(source), batch_size))
    elif (path := Path(source)).is_dir():
        yield from _folder_batches(path, batch_size, total, size)
        return
    elif path.suffix == ".pt":
        images = _pt_images(path)
        batches = (part.permute(0, 2, 3, 1).numpy() for part in images.split(batch_size))
    else:
        batches = _npz_batches(path, batch_size)
    done = 0
    for batch in batches:
        if done >= total:
            return
        part = batch[: total - done]
        done += len(part)
        yield part if size is None else np.stack([np.asarray(_centre(Image.fromarray(image), size)) for image in part])


def pt_prompts(path: str | Path) -> list[str]:
    """The prompts in a `.pt` of the original. Raises ValueError if there are none."""
    prompts = _load_pt(_existing(path)).get("prompts")
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError(f"{path} has no list of prompts; give a file of prompts")
    return prompts


def read_prompts(path: Path) -> list[str]:
    """The prompts in a text file, one a line, or in a JSON file, a list of strings.

    Raises:
        ValueError: no such file, or something else in it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the prompts {path}: {error}") from None
    if path.suffix != ".json":
        prompts = text.removesuffix("\n").split("\n")
        if "" in (stripped := [prompt.strip() for prompt in prompts]):
            raise ValueError(f"line {stripped.index('') + 1} of {path} is empty; there is one prompt a line")
        return stripped
    try:
        prompts = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"cannot read the prompts {path}: {error}") from None
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError(f"{path} is not a list of strings")
    return prompts


def image_files(folder: Path) -> list[Path]:
    """The image files of a folder and its subfolders, by name, without hidden ones. Raises ValueError if none."""
    found = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
    found = [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not found:
        raise ValueError(f"there are no images ({', '.join(SUFFIXES)}) in {folder}")
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _existing(source: str | Path) -> Path:
    path = Path(source)
    if not path.exists():
        raise ValueError(f"there is no {path}; give a folder of images, an .npz or a .pt")
    if not path.is_dir() and path.suffix not in (".npz", ".pt"):
        raise ValueError(f"{path} is no set of images; give a folder of images, an .npz or a .pt")
    return path


def _checked(name: str, shape: tuple[int, ...], dtype: np.dtype) -> tuple[int, ...]:
    if dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3:
        raise ValueError(f"{name} is {dtype} {shape}; images are uint8 (number, height, width, 3)")
    if 0 in shape:
        raise ValueError(f"{name} has no images: its shape is {shape}")
    return shape


class _NpzImages:
    """The member `arr_0` of an `.npz`, open behind its header."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise ValueError(f"cannot read {path}: {error}; is it whole, and an .npz?") from None
        try:
            self.shape = self._open()
        except BaseException:
            self.archive.close()
            raise

    def _open(self) -> tuple[int, ...]:
        names = self.archive.namelist()
        if "arr_0.npy" not in names:
            raise ValueError(f"{self.path} has no images: it holds {', '.join(names) or 'nothing'}, not arr_0")
        self.file: IO[bytes] = self.archive.open("arr_0.npy")
        try:
            version = np.lib.format.read_magic(self.file)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            shape, fortran_order, dtype = read(self.file)
        except (KeyError, ValueError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise ValueError(f"cannot read arr_0 of {self.path}: {error}; is the file whole?") from None
        if fortran_order:
            raise ValueError(f"arr_0 of {self.path} is in Fortran order; save it with numpy.ascontiguousarray")
        return _checked(f"arr_0 of {self.path}", shape, dtype)

    def __enter__(self) -> _NpzImages:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.archive.close()


def _npz_batches(path: Path, batch_size: int) -> Iterator[np.ndarray]:
    with _NpzImages(path) as images:
        number, *shape = images.shape
        for start in range(0, number, batch_size):
            count = min(batch_size, number - start)
            wanted = count * int(np.prod(shape))
            try:
                data = images.file.read(wanted)
            except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
                raise ValueError(f"cannot read image {start} and on of {path}: {error}; is the file whole?") from None
            if len(data) != wanted:
                raise ValueError(f"{path} ends before its {number} images; is the file whole?")
            yield np.frombuffer(data, np.uint8).reshape(count, *shape)


def _folder_batches(folder: Path, batch_size: int, total: int, size: int | None) -> Iterator[np.ndarray]:
    files = image_files(folder)[:total]
    first: tuple[Path, tuple[int, ...]] | None = None
    with ThreadPoolExecutor() as pool:
        for start in range(0, total, batch_size):
            part = files[start : start + batch_size]
            images = list(pool.map(lambda path: _read(path, size), part))
            for path, image in zip(part, images, strict=True):
                first = first or (path, image.shape)
                if image.shape != first[1]:
                    sizes = [f"{p} is {s[1]} × {s[0]}" for p, s in (first, (path, image.shape))]
                    raise ValueError(f"images of several sizes: {', '.join(sizes)}; make them one size")
            yield np.stack(images)


def _read(path: Path, size: int | None) -> np.ndarray:
    try:
        with Image.open(path) as image:
            mode, picture = image.mode, image.convert("RGB")
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        # Pillow has no one class for broken files
        raise ValueError(f"cannot read the image {path}: {error}; is the file whole?") from None
    if mode in DEEP_MODES:
        raise ValueError(f"the image {path} has more than 8 bits a channel; save it with 8")
    return np.asarray(picture if size is None else _centre(picture, size))


def _centre(image: Image.Image, size: int) -> Image.Image:
    return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)


def _load_pt(path: Path) -> dict[str, Any]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError) as error:
        reason = str(error).split("\n", 1)[0]
        raise ValueError(f"cannot read {path}: {reason}; is it a whole .pt of tensors and text alone?") from None
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} holds a {type(loaded).__name__}, not a dictionary of images and prompts")
    return loaded


def _pt_images(path: Path) -> torch.Tensor:
    images = _load_pt(path).get("images")
    if not isinstance(images, torch.Tensor):
        raise ValueError(f"{path} has no tensor of images")
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images of {path} are {images.dtype} {tuple(images.shape)}; they are uint8 (number, 3, h, w)")
    if images.numel() == 0:
        raise ValueError(f"{path} has no images: the shape is {tuple(images.shape)}")
    return images
