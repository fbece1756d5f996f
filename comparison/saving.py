"""Images of two runs on disk, side by side, with what they were made from."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import imageio_ffmpeg
import numpy as np
from PIL import Image

from common.command_line import RunError
from common.digests import file_digest
from common.files import check_can_be_made
from common.folders import atomic_folder
from common.images import side_by_side
from common.reading import read_json
from unets.cache.config import CacheConfig

RESULT = "result.json"
UNTIMED = "made_from.json"  # takes its place until everything is measured
# The files written beside it.
OURS = re.compile(r"output\.(png|mp4|gif)|(baseline|deepcache|asyncdiff|cached)_\d{3,}\.png")
FRAMES_SHOWN = 5
NO_SETTINGS = ("out", "quiet", "repeats", "warm_up", "calibrated")  # don't change the images, or are part of the cache
FILES = ("image", "mask")


def made_from(args: argparse.Namespace, cache: CacheConfig) -> dict[str, Any]:
    """Everything the images depend on: arguments, cache, and the content of the given files.

    Raises:
        ValueError: a file that can't be read.
    """
    given = {name: value for name, value in vars(args).items() if name not in NO_SETTINGS}
    try:
        digests = {name: file_digest(Path(given[name])) for name in FILES if given.get(name)}
    except OSError as error:
        raise ValueError(f"cannot read {error.filename}: {error.strerror}; check the path") from None
    return json.loads(json.dumps({**given, **cache.to_json(), **digests}, default=str))


def check_out(out: Path, settings: dict[str, Any]) -> None:
    """Raises ValueError if `out` is a file, or holds other things or the result of other settings."""
    check_can_be_made(out)
    if not out.is_dir() or not any(out.iterdir()):
        return
    others = [path.name for path in out.iterdir() if path.name not in (RESULT, UNTIMED) and not _is_ours(path)]
    record = next((out / name for name in (RESULT, UNTIMED) if (out / name).is_file()), None)
    if others or record is None:
        raise ValueError(f"--out {out} holds something other than an earlier result; choose another folder")
    earlier = read_json(record, dict, remedy="remove the folder, or choose another --out").get("made_from")
    if not isinstance(earlier, dict):
        raise ValueError(f"--out {out} holds a result that doesn't say what it was made from; choose another folder")
    names = [name for name in sorted(earlier.keys() | settings.keys()) if earlier.get(name) != settings.get(name)]
    if names:
        what = ", ".join(f"{name} was {earlier.get(name)!r} and is now {settings.get(name)!r}" for name in names)
        raise ValueError(f"--out {out} holds the result of other settings: {what}; choose another folder")


def save_comparison(
    out: Path, runs: dict[str, list[Image.Image]], result: dict[str, Any], *, fps: int | None = None
) -> None:
    """Writes `output.png` (a row for each run), every image and `result.json` as the folder `out`, all or nothing.

    With `fps` the images are a video's frames: `output.png` shows some of them, and `output.mp4` and `output.gif` the
    runs side by side. An earlier result of the same settings is replaced, `result.json` last.
    """
    with atomic_folder(out, last=RESULT) as tmp_dir:
        _write_pictures(tmp_dir, runs, fps)
        (tmp_dir / RESULT).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (out / UNTIMED).unlink(missing_ok=True)


def save_first(
    out: Path, runs: dict[str, list[Image.Image]], settings: dict[str, Any], *, fps: int | None = None
) -> None:
    """Writes the same pictures before they are timed, with `made_from.json` instead of `result.json`.

    An earlier result of the same settings stays as it is, until `save_comparison` has a whole one to replace it with.
    """
    if (out / RESULT).is_file():
        return
    with atomic_folder(out) as tmp_dir:
        _write_pictures(tmp_dir, runs, fps)
        (tmp_dir / UNTIMED).write_text(json.dumps({"made_from": settings}, indent=1) + "\n", encoding="utf-8")


def _write_pictures(folder: Path, runs: dict[str, list[Image.Image]], fps: int | None) -> None:
    rows = list(runs.values())
    if fps is not None:
        frames = [np.asarray(side_by_side([list(pair)])) for pair in zip(*rows, strict=True)]
        _write_video(folder / "output.mp4", frames, fps)
        first, *rest = map(Image.fromarray, frames)
        first.save(folder / "output.gif", save_all=True, append_images=rest, duration=1000 / fps, loop=0)
        some = sorted({round(k) for k in np.linspace(0, len(frames) - 1, FRAMES_SHOWN)})
        rows = [[row[k] for k in some] for row in rows]
    side_by_side(rows).save(folder / "output.png")
    for name, images in runs.items():
        for k, image in enumerate(images):
            image.save(folder / f"{name}_{k:03d}.png")


def _write_video(path: Path, frames: Sequence[np.ndarray], fps: int) -> None:
    # A macro block of 2 keeps the size: the pixel format only requires even sides.
    imageio.imwrite(path, frames, fps=fps, codec="libx264", macro_block_size=2)
    try:
        written, _ = imageio_ffmpeg.count_frames_and_secs(str(path))
    except RuntimeError:
        written = 0
    if written != len(frames):  # ffmpeg does not report a full disk
        raise RunError("the video could not be written in full; free some disk space and rerun the command")


def _is_ours(path: Path) -> bool:
    return OURS.fullmatch(path.name) is not None and path.is_file()
