"""Images of two runs on disk, side by side."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
from PIL import Image

from common.images import side_by_side

RESULT = "result.json"
FRAMES_SHOWN = 5


def check_out(out: Path) -> None:
    """Raises ValueError if `out` can't be (re)placed: a file, a folder with other things in it, nowhere to write."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; name a folder")
    if out.is_dir() and any(out.iterdir()):
        result = out / RESULT
        ours = json.loads(result.read_text()).get("files", []) if result.is_file() else []
        if {path.name for path in out.iterdir()} - {RESULT, *ours}:
            raise ValueError(f"--out {out} holds something other than an earlier result; name another folder")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make the folder {out.parent}: {error.strerror}; name another --out") from None
    if not os.access(out.parent, os.W_OK):
        raise ValueError(f"cannot write to {out.parent}; name another --out")


def save_comparison(
    out: Path, runs: dict[str, list[Image.Image]], result: dict[str, Any], *, fps: int | None = None
) -> None:
    """Writes `output.png` (a row for each run), every image and `result.json` as the folder `out`, all or nothing.

    With `fps` the images are a video's frames: `output.png` shows some of them, and `output.mp4` and `output.gif` the
    runs side by side.
    """
    tmp_dir, old = (out.with_name(f".{out.name}.{suffix}") for suffix in ("aside", "old"))
    for path in (tmp_dir, old):
        shutil.rmtree(path, ignore_errors=True)
    try:
        tmp_dir.mkdir()
        rows = list(runs.values())
        if fps is not None:
            frames = [np.asarray(side_by_side([list(pair)])) for pair in zip(*rows, strict=True)]
            # A macro block of 2 keeps sizes as they are: all that the pixel format asks is that they are even.
            imageio.imwrite(tmp_dir / "output.mp4", frames, fps=fps, codec="libx264", macro_block_size=2)
            imageio.imwrite(tmp_dir / "output.gif", frames, duration=1000 / fps, loop=0)
            some = sorted({round(k) for k in np.linspace(0, len(frames) - 1, FRAMES_SHOWN)})
            rows = [[row[k] for k in some] for row in rows]
        side_by_side(rows).save(tmp_dir / "output.png")
        for name, images in runs.items():
            for k, image in enumerate(images):
                image.save(tmp_dir / f"{name}_{k:03d}.png")
        files = sorted(path.name for path in tmp_dir.iterdir())
        (tmp_dir / RESULT).write_text(json.dumps({**result, "files": files}, indent=1) + "\n")
        if out.exists():
            os.replace(out, old)
        os.replace(tmp_dir, out)
    finally:
        shutil.rmtree(tmp_dir, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
