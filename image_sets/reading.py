"""Sets of images on disk, read a batch at a time: `.npz`, a folder, or `.pt` as the original DeepCache writes it."""

from __future__ import annotations

import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from common.arrays import ArrayStream, NpzFile
from common.decoding import decode
from common.reading import read_json, read_text

SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
UNREAD = (  # image formats that are refused: skipping them would silently change the count
    ".apng", ".avif", ".dds", ".exr", ".hdr", ".heic", ".heif", ".j2k", ".jp2", ".jxl", ".pfm", ".psd", ".qoi", ".svg",
    ".tga",
)  # fmt: skip
DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # more than 8 bits, which a conversion to RGB would clip
NO_TEXT = re.compile("[\0\ud800-\udfff]")  # characters that no tokenizer and no text file can have
PROMPTS = "give text in UTF-8 with one prompt a line, or a JSON list of texts"
OVERVIEW = "grid.png"  # an extra file in a set, not one of its images

Source = str | Path | np.ndarray
"""Images: a path, or uint8 (N, H, W, 3) in memory."""


def count_images(source: Source) -> int:
    """How many images there are, without decoding any.

    Raises:
        ValueError: no such source, no images in it, or something else.
    """
    if isinstance(source, np.ndarray):
        return _checked("the array", source.shape, source.dtype)[0]
    path = existing(source)
    if path.is_dir():
        return len(image_files(path))
    if path.suffix == ".pt":
        return len(_pt_images(path))
    with NpzFile(path) as archive:
        return _npz_images(archive).shape[0]


def image_batches(
    source: Source, batch_size: int, limit: int | None = None, *, size: int | None = None
) -> Iterator[np.ndarray]:
    """The images in order as uint8 (B, H, W, 3); the last batch may be smaller. Holds one batch in memory at a time.

    An `.npz` has them as `arr_0`, (N, H, W, 3); a `.pt` has them as `images`, (N, 3, H, W); a folder has files, see
    `image_files`, whose pixels are used as stored, as in pytorch-fid: EXIF and transparency are ignored.
    A folder that `image_sets.sets` wrote stands for its `samples.npz`.

    Args:
        limit: no more images than this.
        size: resize the shorter side to `size` (bicubic) and cut out the centre, size × size.

    Raises:
        ValueError: no such source, no images in it, an unreadable file, several sizes, a wrong dtype or shape.
    """
    total = count_images(source)
    total = total if limit is None else min(limit, total)
    if isinstance(source, np.ndarray):
        batches: Iterable[np.ndarray] = (source[k : k + batch_size] for k in range(0, len(source), batch_size))
    elif (path := existing(source)).is_dir():
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
    prompts = _load_pt(existing(path)).get("prompts")
    if not isinstance(prompts, list):
        raise ValueError(f"{path} has no list of prompts; give a file of prompts")
    return checked_prompts(path, prompts)


def read_prompts(path: Path) -> list[str]:
    """The prompts in a text file, one a line, or in a JSON file, a list of strings.

    Raises:
        ValueError: no such file, or something else in it.
    """
    if path.suffix.lower() == ".json":
        return checked_prompts(path, read_json(path, list, remedy=PROMPTS))
    prompts = read_text(path, PROMPTS).removesuffix("\n").split("\n")
    if "" in (stripped := [prompt.strip() for prompt in prompts]):
        raise ValueError(f"line {stripped.index('') + 1} of {path} is empty; there is one prompt a line")
    return checked_prompts(path, stripped)


def checked_prompts(path: str | Path, prompts: list[Any]) -> list[str]:
    """The prompts of a file, checked. Raises ValueError for anything but text."""
    for k, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise ValueError(f"{path} is not a list of strings: prompt {k} is {str(prompt)[:40]}; {PROMPTS}")
        if NO_TEXT.search(prompt):
            raise ValueError(f"prompt {k} of {path} holds NUL or half a character and is no text; {PROMPTS}")
    return prompts


def image_files(folder: Path) -> list[Path]:
    """The image files of a folder and its subfolders, except hidden ones and a set's overview `grid.png`.

    Sorted by path, with numbers compared as numbers: 2.png before 10.png, like 02.png before 10.png.

    Raises:
        ValueError: no images, images in unsupported formats, or an unreadable folder.
    """
    files = [path for path in _visible_files(folder) if path.suffix.lower() in SUFFIXES + UNREAD]
    if unread := sorted(path.relative_to(folder).as_posix() for path in files if path.suffix.lower() in UNREAD):
        names = ", ".join(unread[:3]) + (", …" if len(unread) > 3 else "")
        raise ValueError(
            f"{len(unread)} of the {len(files)} pictures in {folder} are of kinds that are not read ({names}); "
            "save them as PNG or move them away"
        )
    found = [path for path in files if path.name != OVERVIEW or not _is_overview(path, files)]
    if not found:
        raise ValueError(f"there are no images ({', '.join(SUFFIXES)}) in {folder}")
    return sorted(found, key=lambda path: number_order(path.relative_to(folder).as_posix()))


def _visible_files(folder: Path) -> Iterator[Path]:
    """All files of a folder and its subfolders, and broken links, which would otherwise go unnoticed."""

    def refuse(error: OSError) -> None:
        raise ValueError(f"cannot read the folder {error.filename}: {error.strerror}; change its permissions")

    for root, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(root, name) for name in names if not name.startswith("."))


def _is_overview(path: Path, files: list[Path]) -> bool:
    """Whether the file is next to a set's settings, or to images whose names are all numbers."""
    others = [other.stem for other in files if other.parent == path.parent and other != path]
    return (path.parent / "settings.json").is_file() or (bool(others) and all(map(str.isdecimal, others)))


def number_order(name: str) -> tuple[str, str]:
    """A sort key by the numbers in a name; zero-padded names sort as they would alphabetically.

    Each number is prefixed with how many digits it has, so that it still starts with a digit.
    """
    return re.sub("[0-9]+", lambda digits: f"{len(n := digits[0].lstrip('0')):03}{n}", name), name


def existing(source: str | Path) -> Path:
    """The folder, `.npz` or `.pt` that a path stands for; for the folder of a finished set, its `samples.npz`.

    Raises:
        ValueError: it does not exist, or the set is not finished.
    """
    path = Path(source)
    if not os.path.exists(path):  # pathlib's own raises for a name that is too long
        raise ValueError(f"there is no {path}; give a folder of images, an .npz or a .pt")
    if not path.is_dir():
        if path.suffix not in (".npz", ".pt") or not path.is_file():
            raise ValueError(f"{path} is no set of images; give a folder of images, an .npz or a .pt")
        return path
    if (path / "settings.json").is_file():
        if (samples := path / "samples.npz").is_file():
            return samples
        if (path / "parts").is_dir():
            raise ValueError(f"the set of images {path} is not finished; run again what makes it, which goes on")
    return path


def _checked(name: str, shape: tuple[int, ...], dtype: np.dtype) -> tuple[int, ...]:
    if dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3:
        raise ValueError(f"{name} is {dtype} {shape}; images are uint8 (number, height, width, 3)")
    if 0 in shape:
        raise ValueError(f"{name} has no images: its shape is {shape}")
    return shape


def _npz_images(archive: NpzFile) -> ArrayStream:
    """The images, `arr_0`."""
    if "arr_0" not in (names := archive.names()):
        raise ValueError(f"{archive.path} has no images: it holds {', '.join(names) or 'nothing'}, not arr_0")
    images = archive.stream("arr_0")
    if images.fortran_order:
        raise ValueError(f"arr_0 of {archive.path} is in Fortran order; save it with numpy.ascontiguousarray")
    _checked(f"arr_0 of {archive.path}", images.shape, images.dtype)
    return images


def _npz_batches(path: Path, batch_size: int) -> Iterator[np.ndarray]:
    with NpzFile(path) as archive:
        images = _npz_images(archive)
        number, *shape = images.shape
        for start in range(0, number, batch_size):
            count = min(batch_size, number - start)
            wanted = count * int(np.prod(shape))
            try:
                data = images.file.read(wanted)
            except Exception as error:  # zipfile and zlib have no single exception for damaged contents
                reason = str(error) or type(error).__name__
                raise ValueError(f"cannot read image {start} and on of {path}: {reason}; is the file whole?") from None
            if len(data) != wanted:
                raise ValueError(f"{path} ends before its {number} images; is the file whole?")
            yield np.frombuffer(data, np.uint8).reshape(count, *shape)


def _folder_batches(folder: Path, batch_size: int, total: int, size: int | None) -> Iterator[np.ndarray]:
    files = image_files(folder)[:total]
    first: tuple[Path, tuple[int, ...]] | None = None
    with ThreadPoolExecutor() as pool:
        for start in range(0, total, batch_size):
            part = files[start : start + batch_size]
            with warnings.catch_warnings(action="ignore"):  # Pillow's about odd files; not thread-safe, so here
                images = list(pool.map(lambda path: _read(path, size), part))
            for path, image in zip(part, images, strict=True):
                first = first or (path, image.shape)
                if image.shape != first[1]:
                    sizes = [f"{p} is {s[1]} × {s[0]}" for p, s in (first, (path, image.shape))]
                    raise ValueError(f"images of several sizes: {', '.join(sizes)}; make them one size")
            yield np.stack(images)


def _read(path: Path, size: int | None) -> np.ndarray:
    picture = decode(path)
    if picture.mode in DEEP_MODES:
        raise ValueError(f"the image {path} has more than 8 bits a channel; save it with 8")
    picture = picture.convert("RGB")
    return np.asarray(picture if size is None else _centre(picture, size))


def _centre(image: Image.Image, size: int) -> Image.Image:
    return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)


def _load_pt(path: Path) -> dict[str, Any]:
    try:
        with warnings.catch_warnings(action="ignore"):  # torch's about odd files; the error says what matters
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # unpickling a damaged file raises almost anything
        if isinstance(error, pickle.UnpicklingError):
            reason = "it holds something else"
        elif path.is_file() and not zipfile.is_zipfile(path):
            reason = "it is no archive such as torch.save writes"
        else:
            reason = (str(error) or type(error).__name__).split("\n", 1)[0][:120]
        raise ValueError(f"cannot read {path}: {reason}; is it a whole .pt of tensors and text alone?") from None
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} holds a {type(loaded).__name__}, not a dictionary of images and prompts")
    return loaded


def _pt_images(path: Path) -> torch.Tensor:
    images = _load_pt(path).get("images")
    if not isinstance(images, torch.Tensor):
        raise ValueError(f"{path} has no tensor of images")
    if images.is_nested or images.layout != torch.strided or images.is_meta:
        raise ValueError(f"images of {path} are a tensor of an unusual kind; save them as a plain one")
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images of {path} are {images.dtype} {tuple(images.shape)}; they are uint8 (number, 3, h, w)")
    if images.numel() > images.untyped_storage().nbytes():
        raise ValueError(f"images of {path} have fewer values than their shape says; save them with Tensor.contiguous")
    if images.numel() == 0:
        raise ValueError(f"{path} has no images: the shape is {tuple(images.shape)}")
    return images
