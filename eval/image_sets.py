"""Large sets of generated images on disk: made by any number of processes, killed and continued at will.

A set is a folder. While it is made, `parts/` holds a file for each finished batch, named after its first and last
image; at the end all images are in `samples.npz` (`arr_0` uint8 NHWC, `arr_1` class labels where there are any).
`settings.json` says what they were made with; images of other settings are never mixed in.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from .arguments import RunError
from .files import written_aside
from .images import side_by_side
from .read_images import count_images, image_batches

GRID = 64  # images in the overview
ROW = 8
ROUNDINGS = ("nearest", "truncate")
HALF_MADE = ".settings.aside.json"  # all that a run leaves that was killed right at its start


class Batch(NamedTuple):
    """What is made at once."""

    indices: list[int]
    generators: list[torch.Generator]  # image k's noise comes from its own, whatever is made beside it


@dataclass
class Run:
    """What a sampling script was asked for: the set, how its images are made, and the U-Net that makes them."""

    image_set: ImageSet
    make: Callable[[Batch], Tensor]
    unet: Any
    labels_of: Callable[[Sequence[int]], np.ndarray] | None = None


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
                there = json.loads(file.read_text())
            except ValueError:
                raise ValueError(f"{file} is not JSON; remove the folder, or name another --out") from None
            names = sorted(there.keys() | self.settings.keys())
            apart = [name for name in names if there.get(name) != self.settings.get(name)]
            if apart:
                what = ", ".join(f"{k} is {there.get(k)!r} there and {self.settings.get(k)!r} now" for k in apart)
                raise ValueError(f"{self.out} holds images of other settings: {what}; name another --out")
        elif self.out.exists() and (not self.out.is_dir() or any(p.name != HALF_MADE for p in self.out.iterdir())):
            raise ValueError(f"{self.out} holds something other than a set of images; name another --out")
        else:
            try:
                self.out.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ValueError(f"cannot make the folder {self.out}: {error.strerror}; name another --out") from None
            with written_aside(file) as aside:
                aside.write_text(json.dumps(self.settings, indent=1) + "\n")
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
        with written_aside(self.parts / f"{indices[0]:08d}-{indices[-1]:08d}.npz") as aside:
            np.savez(aside, **arrays)

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
            with written_aside(self.samples) as aside, zipfile.ZipFile(aside, "w") as archive:
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
        with written_aside(self.out / "grid.png") as aside:
            side_by_side(rows).save(aside, format="png")

    def _write_pngs(self, num_images: int, quiet: bool) -> None:
        folder = self.out / "images"
        folder.mkdir(exist_ok=True)
        start = 0
        for batch in tqdm(image_batches(self.samples, 256, num_images), desc="PNGs", disable=quiet, delay=5):
            for k, image in enumerate(batch, start):
                path = folder / f"{k:06d}.png"
                if not path.exists():
                    with written_aside(path) as aside:
                        Image.fromarray(image).save(aside, format="png")
            start += len(batch)


def generate(
    image_set: ImageSet,
    num_images: int,
    batch_size: int,
    make: Callable[[Batch], Tensor],
    *,
    seed: int,
    labels_of: Callable[[Sequence[int]], np.ndarray] | None = None,
    rounding: str = "nearest",
    png: bool = False,
    quiet: bool = False,
) -> int:
    """Makes what is missing of a set, together with the other processes that `accelerate launch` or torchrun started.

    Args:
        make: images (B, 3, H, W) in [−1, 1] of a batch, from nothing but its indices and generators.
        labels_of: class labels of images, if they are to be kept beside them.
        rounding: as for `to_uint8`.

    Returns:
        How many images this process made.

    Raises:
        ValueError: the folder holds images of other settings.
        RunError: an image holds values that are not finite.
    """
    state = PartialState(cpu=not torch.cuda.is_available())
    told: list[Any] = [None, None]  # by the first process: what is missing, or what is wrong
    if state.is_main_process:
        try:
            image_set.open()
            told = [image_set.missing(num_images), None]
        except ValueError as error:
            told = [None, str(error)]
    missing, wrong = broadcast_object_list(told) if state.num_processes > 1 else told
    if wrong is not None:
        raise ValueError(wrong)
    batches = [list(gap[k : k + batch_size]) for gap in missing for k in range(0, len(gap), batch_size)]
    mine = batches[state.process_index :: state.num_processes]

    made, halved = 0, False
    with tqdm(
        total=sum(map(len, mine)), desc="images", unit="img", disable=quiet or not mine or not state.is_main_process
    ) as bar:
        while mine:
            indices = mine.pop(0)
            try:
                images = make(Batch(indices, [image_generator(seed, k) for k in indices]))
            except RuntimeError as error:
                if not _is_out_of_memory(error) or halved or len(indices) == 1:
                    raise
                halved, half = True, (len(indices) + 1) // 2
                tqdm.write(f"out of memory with a batch of {len(indices)}; going on with {half}")
                mine = [part[k : k + half] for part in [indices, *mine] for k in range(0, len(part), half)]
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                continue
            image_set.write(indices, to_uint8(images, indices, rounding), labels_of(indices) if labels_of else None)
            made += len(indices)
            bar.update(len(indices))
    state.wait_for_everyone()
    if state.is_main_process:
        image_set.finish(num_images, png=png, quiet=quiet)
    state.wait_for_everyone()
    return made


def make_set(run: Run, args: argparse.Namespace, num_images: int, **more: Any) -> str:
    """What a sampling script does with its run and the arguments of a set; says how many were made, in what time."""
    started = time.perf_counter()
    made = generate(
        run.image_set,
        num_images,
        args.batch_size,
        run.make,
        seed=args.seed,
        labels_of=run.labels_of,
        png=args.png,
        quiet=args.quiet,
        **more,
    )
    return f"{made} images made in {time.perf_counter() - started:.1f} s"


def device_of_process(device: torch.device) -> torch.device:
    """Where this process is to run: of several on CUDA, each has a GPU of its own. To be asked before `generate`."""
    state = PartialState(cpu=device.type == "cpu")
    return state.device if device.type == "cuda" and state.num_processes > 1 else device


def image_generator(seed: int, index: int) -> torch.Generator:
    """The source of all of an image's noise. Sets of different seeds share none."""
    mixed = np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed))


def to_uint8(images: Tensor, indices: Sequence[int], rounding: str = "nearest") -> np.ndarray:
    """(B, 3, H, W) in [−1, 1] to uint8 (B, H, W, 3).

    Args:
        rounding: `nearest`; or `truncate`, which of x in [0, 1] makes 255x without its fraction, in float32.

    Raises:
        RunError: a value is not finite.
    """
    for k, image in zip(indices, images, strict=True):
        if not image.isfinite().all():
            raise RunError(f"image {k} holds values that are not finite; try --dtype float32")
    if rounding == "truncate":
        images = ((images + 1) / 2).float()  # of float64 images, x comes back unrounded
        scaled = images * 255
    else:
        scaled = ((images.float() + 1) * 127.5).round()
    return scaled.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def digest(model: nn.Module) -> str:
    """Tells weights apart, whatever file they came from: sixteen hexadecimal digits of their SHA-256."""
    sha = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        sha.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return sha.hexdigest()[:16]


def _is_out_of_memory(error: RuntimeError) -> bool:
    return "out of memory" in str(error) or "can't allocate memory" in str(error)
