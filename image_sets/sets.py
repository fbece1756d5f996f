"""Large sets of generated images on disk: made by any number of processes, and resumable if killed.

A set is a folder. While it is being made, `parts/` has a file for each finished batch, named after its first and last
image; at the end all images are in `samples.npz` (`arr_0` uint8 NHWC, `arr_1` class labels where there are any).
`settings.json` has the settings and machines they were made with; images of other settings are never mixed in.
`samples.json` has the digest of `samples.npz`; another file in its place is never taken for the set's.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from PIL import Image
from tqdm import tqdm

from common.arrays import NpzFile
from common.digests import file_digest
from common.files import atomic_write, check_can_be_made, half_written, write_json
from common.images import side_by_side
from common.reading import read_json
from common.words import counted

from .reading import count_images, image_batches

GRID = 64  # images in the overview
ROW = 8
MADE_ON = "made_on"  # in settings.json: the machines, which are not a setting
PART = re.compile(r"(\d{8,})-(\d{8,})\.npz")  # first and last image
HALF_MADE = re.compile(r"\.settings\.[0-9a-f]{8}\.tmp\.json|\.lock")  # leftovers of a run killed at its start


class ImageSet:
    """The folder `out` with images of these settings; `machine` is recorded with them but not compared."""

    def __init__(self, out: Path, settings: dict[str, Any], machine: Mapping[str, Any] | None = None) -> None:
        self.out = out
        self.settings = json.loads(json.dumps(settings))
        self.machine = json.loads(json.dumps(machine)) if machine else None
        self.parts = out / "parts"
        self.samples = out / "samples.npz"

    def open(self) -> None:
        """Creates the folder, or checks that its images have the same settings.

        Raises:
            ValueError: the folder holds images of other settings, naming what differs, or something else.
        """
        if (self.out / "settings.json").is_file():
            content = read_settings(self.out)
            made_on = content.pop(MADE_ON, [])
            if not isinstance(made_on, list):
                raise ValueError(f"{self.out / 'settings.json'} is damaged; remove the folder to have it made again")
            names = sorted(content.keys() | self.settings.keys())
            differing = [name for name in names if content.get(name) != self.settings.get(name)]
            if differing:
                what = ", ".join(_difference(name, content.get(name), self.settings.get(name)) for name in differing)
                raise ValueError(f"{self.out} holds images of other settings: {what}; choose another --out")
            samples_digest(self.out)
            if self.machine and self.machine not in made_on:
                self._write_settings([*made_on, self.machine])
        elif self.out.exists() and (
            not self.out.is_dir() or any(not HALF_MADE.fullmatch(p.name) for p in self.out.iterdir())
        ):
            raise ValueError(f"{self.out} holds something other than a set of images; choose another --out")
        else:
            check_can_be_made(self.out)
            self.out.mkdir(parents=True, exist_ok=True)
            self._write_settings([self.machine] if self.machine else [])
        if self.parts.is_symlink():
            raise ValueError(f"{self.parts} is a link; remove it")
        self.parts.mkdir(exist_ok=True)

    def _write_settings(self, made_on: list[Any]) -> None:
        write_json(self.out / "settings.json", {**self.settings, **({MADE_ON: made_on} if made_on else {})})

    def lock(self) -> FileLock:
        """Held by the process that makes the set, on whichever machine. A killed process holds nothing."""
        return FileLock(self.out / ".lock", is_singleton=True, preserve_lock_file=True)

    def _parts(self) -> list[tuple[int, int, Path]]:
        names = [(PART.fullmatch(path.name), path) for path in self.parts.glob("*.npz")]
        return [(int(name[1]), int(name[2]), path) for name, path in names if name]

    def finished(self) -> list[tuple[int, int, Path]]:
        """First and last image and file of each finished piece, in order and without overlaps.

        Raises:
            ValueError: a piece that is damaged, or whose name does not match its number of images.
        """
        pieces = self._parts()
        for first, last, path in pieces:
            if count_images(path) != last - first + 1:
                raise ValueError(f"{path} does not hold images {first} to {last}; remove it to have them made again")
        if self.samples.is_file():
            pieces.append((0, count_images(self.samples) - 1, self.samples))
        kept: list[tuple[int, int, Path]] = []
        for first, last, path in sorted(pieces, key=lambda piece: (piece[0], -piece[1])):
            if not kept or first > kept[-1][1]:
                kept.append((first, last, path))
        return kept

    def unbroken(self) -> list[tuple[int, int, Path]]:
        """The finished pieces before the first gap; a killed run of several processes leaves others after it."""
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
        with atomic_write(self.parts / f"{indices[0]:08d}-{indices[-1]:08d}.npz", tidy=False) as tmp_path:
            np.savez(tmp_path, **arrays)

    def images(self) -> Iterator[np.ndarray]:
        """The finished images before the first gap in order, in batches of uint8 (B, H, W, 3)."""
        for _, _, path in self.unbroken():
            yield from image_batches(path, 256)

    def labels(self) -> np.ndarray | None:
        """Class labels of the same images (B,), if they have any."""
        parts = []
        for _, _, path in self.unbroken():
            with NpzFile(path) as arrays:
                if "arr_1" not in arrays.names():
                    return None
                parts.append(arrays.read("arr_1"))
        return np.concatenate(parts)

    def finish(self, num_images: int, *, png: bool = False, quiet: bool = False) -> None:
        """Puts the images into `samples.npz`, batch by batch, removes their parts and draws the overview."""
        total = self.unbroken()[-1][1] + 1
        if not self.samples.is_file() or count_images(self.samples) < total:
            labels, record = self.labels(), self.out / "samples.json"
            before = [digest] if (digest := samples_digest(self.out)) else []
            with atomic_write(self.samples) as tmp_path:
                with zipfile.ZipFile(tmp_path, "w") as archive:
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
                after = file_digest(tmp_path)
                write_json(record, {"sha256": [*before, after]})  # both, since this can be killed before the next line
            write_json(record, {"sha256": [after]})
        for path in half_written(self.parts):
            path.unlink()
        for begin, _, path in self._parts():
            if begin < total:  # the others belong to a larger set, not yet finished
                path.unlink()
        if not any(self.parts.iterdir()):
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
        for path in half_written(folder):
            path.unlink()
        start = 0
        for batch in tqdm(image_batches(self.samples, 256, num_images), desc="PNGs", disable=quiet, delay=5):
            for k, image in enumerate(batch, start):
                path = folder / f"{k:06d}.png"
                if not path.exists():
                    with atomic_write(path, tidy=False) as tmp_path:
                        Image.fromarray(image).save(tmp_path, format="png")
            start += len(batch)


def read_settings(out: Path) -> dict[str, Any]:
    """The settings of a set. Raises ValueError for a folder that is not a set, or a damaged one."""
    file = out / "settings.json"
    if not file.exists():
        raise ValueError(f"{out} is not a set of images: it has no settings.json; remove it to have it made")
    return read_json(file, dict, remedy="it is damaged; remove the folder to have it made again")


def samples_digest(out: Path) -> str | None:
    """SHA-256 of a set's `samples.npz`; None if it has none yet.

    Raises:
        ValueError: it is not the file that was written there.
    """
    samples = out / "samples.npz"
    if not samples.is_file():
        return None
    try:
        recorded = read_json(out / "samples.json", dict).get("sha256")
    except ValueError:
        recorded = None
    if not isinstance(recorded, list) or (digest := file_digest(samples)) not in recorded:
        raise ValueError(f"{samples} is not the file that was made there; remove it to have the images made again")
    return digest


def _difference(name: str, earlier: Any, now: Any) -> str:
    """How a setting changed; for timesteps, their number or else the first one that differs."""
    if not (isinstance(earlier, list) and isinstance(now, list) and name == "timesteps"):
        return f"{name} was {earlier!r} and is now {now!r}"
    if len(earlier) != len(now):
        return f"there were {counted(len(earlier), 'step')} and are now {len(now)}"
    k = next(k for k, pair in enumerate(zip(earlier, now, strict=True)) if pair[0] != pair[1])
    return f"the timestep of step {k} was {earlier[k]} and is now {now[k]}"
