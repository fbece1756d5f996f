"""Large sets of generated images on disk: made by any number of processes, killed and continued at will.

A set is a folder. While it is made, `parts/` holds a file for each finished batch, named after its first and last
image; at the end all images are in `samples.npz` (`arr_0` uint8 NHWC, `arr_1` class labels where there are any).
`settings.json` says what they were made with; images of other settings are never mixed in.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from common.files import atomic_write, write_json
from common.images import side_by_side

from .reading import count_images, image_batches

GRID = 64  # images in the overview
ROW = 8
HALF_MADE = ".settings.aside.json"  # all that a run leaves that was killed right at its start


class ImageSet:
    """The folder `out` with images of these settings."""

    def __init__(self, out: Path, settings: dict[str, Any]) -> None:
        self.out = out
        self.settings = json.loads(json.dumps(settings))
        self.parts = out / "parts"
        self.samples = out / "samples.npz"

    def open(self) -> None:
        """Makes the folder, or finds it with images of the same settings.

        Raises:
            ValueError: the folder holds images of other settings, naming what differs, or something else.
        """
        file = self.out / "settings.json"
        if file.is_file():
            try:
                existing = json.loads(file.read_text())
            except ValueError:
                raise ValueError(f"{file} is not JSON; remove the folder, or name another --out") from None
            names = sorted(existing.keys() | self.settings.keys())
            differing = [name for name in names if existing.get(name) != self.settings.get(name)]
            if differing:
                what = ", ".join(
                    f"{name} is {existing.get(name)!r} there and {self.settings.get(name)!r} now" for name in differing
                )
                raise ValueError(f"{self.out} holds images of other settings: {what}; name another --out")
        elif self.out.exists() and (not self.out.is_dir() or any(p.name != HALF_MADE for p in self.out.iterdir())):
            raise ValueError(f"{self.out} holds something other than a set of images; name another --out")
        else:
            try:
                self.out.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ValueError(f"cannot make the folder {self.out}: {error.strerror}; name another --out") from None
            write_json(file, self.settings)
        self.parts.mkdir(exist_ok=True)

    def finished(self) -> list[tuple[int, int, Path]]:
        """First and last image and file of each piece that is there, without overlaps, in order."""
        pieces: list[tuple[int, int, Path]] = []
        for path in self.parts.glob("[0-9]*-[0-9]*.npz"):
            first, last = map(int, path.stem.split("-"))
            pieces.append((first, last, path))
        if self.samples.is_file():
            pieces.append((0, count_images(self.samples) - 1, self.samples))
        kept: list[tuple[int, int, Path]] = []
        for first, last, path in sorted(pieces, key=lambda piece: (piece[0], -piece[1])):
            if not kept or first > kept[-1][1]:
                kept.append((first, last, path))
        return kept

    def unbroken(self) -> list[tuple[int, int, Path]]:
        """The finished pieces before the first gap: a killed run of several processes leaves others behind it."""
        kept: list[tuple[int, int, Path]] = []
        for piece in self.finished():
            if piece[0] != (kept[-1][1] + 1 if kept else 0):
                break
            kept.append(piece)
        return kept

    def missing(self, num_images: int) -> list[range]:
        """Runs of images that are still to be made."""
        gaps, at = [], 0
        for first, last, _ in self.finished():
            gaps.append(range(at, min(first, num_images)))
            at = last + 1
        gaps.append(range(at, num_images))
        return [gap for gap in gaps if gap]

    def write(self, indices: Sequence[int], images: np.ndarray, labels: np.ndarray | None) -> None:
        """A finished batch: images uint8 (B, H, W, 3) of consecutive indices, labels (B,)."""
        arrays: dict[str, Any] = {"arr_0": images} if labels is None else {"arr_0": images, "arr_1": labels}
        with atomic_write(self.parts / f"{indices[0]:08d}-{indices[-1]:08d}.npz") as tmp_path:
            np.savez(tmp_path, **arrays)

    def images(self) -> Iterator[np.ndarray]:
        """The finished images before the first gap in order, in batches of uint8 (B, H, W, 3)."""
        for _, _, path in self.unbroken():
            yield from image_batches(path, 256)

    def labels(self) -> np.ndarray | None:
        """Class labels of the same images (B,), if they have any."""
        parts = []
        for _, _, path in self.unbroken():
            with np.load(path) as arrays:  # which reads only what is asked for
                if "arr_1" not in arrays:
                    return None
                parts.append(arrays["arr_1"])
        return np.concatenate(parts)

    def finish(self, num_images: int, *, png: bool = False, quiet: bool = False) -> None:
        """Puts the images into `samples.npz`, batch by batch, removes their parts and draws the overview."""
        total = self.unbroken()[-1][1] + 1
        if not self.samples.is_file() or count_images(self.samples) < total:
            labels = self.labels()
            with atomic_write(self.samples) as tmp_path, zipfile.ZipFile(tmp_path, "w") as archive:
                with archive.open("arr_0.npy", "w", force_zip64=True) as member:
                    bar = tqdm(total=total, desc="samples.npz", unit="images", disable=quiet, delay=5)
                    for k, batch in enumerate(self.images()):
                        if k == 0:
                            header = {"descr": "|u1", "fortran_order": False, "shape": (total, *batch.shape[1:])}
                            np.lib.format.write_array_header_1_0(member, header)
                        member.write(np.ascontiguousarray(batch).data)
                        bar.update(len(batch))
                    bar.close()
                if labels is not None:
                    with archive.open("arr_1.npy", "w") as member:
                        np.lib.format.write_array(member, labels)
        behind = {path for first, _, path in self.finished() if first >= total}  # of a larger set, not yet finished
        for path in set(self.parts.iterdir()) - behind:
            path.unlink()
        if not behind:
            self.parts.rmdir()
        if png:
            self._write_pngs(num_images, quiet)
        first = next(image_batches(self.samples, GRID))
        rows = [[Image.fromarray(image) for image in first[k : k + ROW]] for k in range(0, len(first), ROW)]
        with atomic_write(self.out / "grid.png") as tmp_path:
            side_by_side(rows).save(tmp_path, format="png")

    def _write_pngs(self, num_images: int, quiet: bool) -> None:
        folder = self.out / "images"
        folder.mkdir(exist_ok=True)
        start = 0
        for batch in tqdm(image_batches(self.samples, 256, num_images), desc="PNGs", disable=quiet, delay=5):
            for k, image in enumerate(batch, start):
                path = folder / f"{k:06d}.png"
                if not path.exists():
                    with atomic_write(path) as tmp_path:
                        Image.fromarray(image).save(tmp_path, format="png")
            start += len(batch)
