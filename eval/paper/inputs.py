"""The inputs of the tables at the paper's scale: where each comes from, where it goes, and whether it exists.

`inputs.json` lists them, typed here. `python -m eval.fetch` is the command.
"""

from __future__ import annotations

import fnmatch
import functools
import glob
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub.utils as hub_utils
from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.file_download import repo_folder_name

from common.command_line import RunError
from common.download import (
    TIMEOUT,
    Download,
    check_room,
    difference,
    download,
    download_and_unpack,
    reason,
    torch_cache,
)
from common.files import atomic_write

from ..generation.published import COCO, PARTI, captions
from ..metrics.published import INCEPTION
from . import cifar10

FILE = Path(__file__).parent / "inputs.json"
FOLDER = Path("inputs")  # unless --inputs names another

# Downloaded by other modules, whatever the table; only they have the address.
PUBLISHED = {"inception": INCEPTION, "parti": PARTI, "coco": COCO}
UNPACK: dict[str, Callable[[Path, Path], None]] = {"coco": captions, "cifar10-train": cifar10.write_images}


@dataclass(frozen=True)
class Layout:
    """The files needed of a model on the hub. Patterns with a star are downloaded but not checked."""

    files: tuple[str, ...]
    weights: tuple[tuple[str, ...], ...]  # alternatives; the first one that the hub has in full is used


LAYOUTS = {
    "pipeline": Layout(  # of diffusers, without the safety checker; weights all in one format, or it asks for the other
        ("model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json", "tokenizer/merges.txt",
         "tokenizer/vocab.json", "unet/config.json", "vae/config.json", "feature_extractor/*", "tokenizer/*"),
        (("text_encoder/model.safetensors", "unet/diffusion_pytorch_model.safetensors",
          "vae/diffusion_pytorch_model.safetensors"),
         ("text_encoder/pytorch_model.bin", "unet/diffusion_pytorch_model.bin", "vae/diffusion_pytorch_model.bin")),
    ),
    "open_clip": Layout((), (("open_clip_model.safetensors",), ("open_clip_pytorch_model.bin",))),
}  # fmt: skip
KINDS = ("file", "archive", "by hand", *LAYOUTS)
USES = ("images", "scores", "references")


@dataclass(frozen=True)
class Input:
    """A model, a set of prompts, a reference, or the source of a reference."""

    name: str
    about: str
    kind: str  # one of KINDS
    use: str  # one of USES: what needs it
    licence: str
    source: Download | None = None
    hub: str | None = None  # id of a model
    revision: str | None = None  # None: the newest
    place: str | None = None  # {inputs} is --inputs, {torch} torch.hub's cache; None: the hub's cache
    by_hand: str | None = None  # how to get what is not downloaded
    other_names: tuple[str, ...] = ()  # file names under which it is also found in --inputs

    @property
    def origin(self) -> str | None:
        """Its address."""
        if self.hub is not None:
            return f"https://huggingface.co/{self.hub}"
        return self.source.url if self.source is not None else None


@dataclass(frozen=True)
class Present:
    """The input exists."""

    path: Path


@dataclass(frozen=True)
class Missing:
    """The input is missing or incomplete."""

    text: str  # one line, with the remedy


@functools.cache
def load_inputs() -> dict[str, Input]:
    """All inputs by name. Raises as `parse_inputs`."""
    return parse_inputs(json.loads(FILE.read_text(encoding="utf-8")))


def parse_inputs(content: Mapping[str, dict[str, Any]]) -> dict[str, Input]:
    """The inputs in a file's content. Raises ValueError for a key or a value that is unknown or missing."""
    return {name: _input(name, dict(entry)) for name, entry in content.items()}


def _input(name: str, entry: dict[str, Any]) -> Input:
    source = {key: entry.pop(key) for key in ("url", "digest", "size") if key in entry}
    try:
        made = Input(
            name, **{**entry, "other_names": tuple(entry.get("other_names", ()))},
            source=Download(**source) if source else PUBLISHED.get(name),
        )  # fmt: skip
    except TypeError as error:  # which names the key
        raise ValueError(f"{name}: {error}") from None
    if made.kind not in KINDS or made.use not in USES:
        raise ValueError(f"{name}: kind is one of {', '.join(KINDS)}; use one of {', '.join(USES)}")
    needed = {"by hand": made.by_hand, "file": made.source, "archive": made.source}.get(made.kind, made.hub)
    if needed is None or (made.place is None) != (made.hub is not None):
        raise ValueError(f"{name}: it has no address or no place")
    return made


def find(name: str) -> Input:
    """The input of that name. Raises ValueError listing the names."""
    if name not in load_inputs():
        raise ValueError(f"there is no input {name}; there are {', '.join(load_inputs())}")
    return load_inputs()[name]


def locate(name: str, inputs_dir: Path) -> Path:
    """Where an input is, or will be: a file, or a folder."""
    one = find(name)
    if one.place is None:
        assert one.hub is not None
        return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=one.hub, repo_type="model")
    return Path(_filled_in(one.place, inputs_dir))


def remedy(name: str, inputs_dir: Path = FOLDER) -> str:
    """How to get an input: a command, or a sentence."""
    one = find(name)
    if one.kind == "by hand":
        return _filled_in(one.by_hand or "", inputs_dir)
    return f"python -m eval.fetch {name}" + (f" --inputs {inputs_dir}" if inputs_dir != FOLDER else "")


def remedies(names: Iterable[str], inputs_dir: Path) -> list[str]:
    """One line for each missing input: what it is, and how to get it."""
    states = (state(name, inputs_dir) for name in names)
    return [one.text for one in states if isinstance(one, Missing)]


def state(name: str, inputs_dir: Path) -> Present | Missing:
    """Whether an input exists. Checks existence and size, not digests."""
    one, path = find(name), locate(name, inputs_dir)
    if one.hub is not None:
        if one.kind == "pipeline" and Path(one.hub).is_dir():  # which diffusers would prefer
            return Present(Path(one.hub))
        if _is_cached(one):
            return Present(path)
    elif path.exists():
        size = one.source.size if one.source and one.kind == "file" else None
        if size in (None, path.stat().st_size):
            return Present(path)
        return Missing(
            f"{name}: {path} has {path.stat().st_size:,} bytes instead of {size:,}; move it away, and "
            f"{remedy(name, inputs_dir)}"
        )
    return Missing(f"{name}, {one.about}: {remedy(name, inputs_dir)}")


def missing(names: Iterable[str], use: str, inputs_dir: Path) -> tuple[str, ...]:
    """The missing inputs of a use, one of `USES`."""
    return tuple(name for name in names if find(name).use == use and isinstance(state(name, inputs_dir), Missing))


def fetch_missing(names: Iterable[str], inputs_dir: Path, quiet: bool) -> list[str]:
    """Downloads the missing inputs that can be downloaded; failures are reported in one line each and skipped.

    Returns:
        The names of those that are still missing.
    """
    left = []
    for name in dict.fromkeys(names):
        if isinstance(state(name, inputs_dir), Present):
            continue
        try:
            print(fetch(name, inputs_dir, quiet), flush=True)
        except (RunError, OSError, ValueError) as error:
            print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
            left.append(name)
    return left


def fetch(name: str, inputs_dir: Path, quiet: bool = False) -> str:
    """Downloads an input, or links what is in `inputs_dir` under another usual name, and says so in one line.

    Raises:
        ValueError: there is no such input.
        RunError: it can't or must not be downloaded, or another file has its name.
    """
    one, path = find(name), locate(name, inputs_dir)
    if one.hub is not None:
        there = isinstance(state(name, inputs_dir), Present)
        if not there:
            _fetch_model(one, quiet)
        return f"{name}: {'there already' if there else 'downloaded to'} {path}"
    if path.exists():
        if one.kind == "file" and one.source and (what := difference(one.source, path)):
            raise RunError(f"{path} is damaged or another file: {what}; move it away and try again")
        return f"{name}: there already, {path}"
    linked, notes = _adopt(one, path, inputs_dir)
    if linked is not None:
        return f"{name}: linked {linked} to {path}"
    noted = "".join(f"; {note}" for note in notes)
    if one.kind == "by hand" or one.source is None:
        raise RunError(f"{one.about}: not downloaded; {remedy(name, inputs_dir)}{noted}")
    try:
        if one.kind == "archive":
            download_and_unpack(one.source, path, UNPACK[name], quiet=quiet, remedy=f"put the file at {path}")
        else:
            download(one.source, path, quiet=quiet, remedy=f"put the file at {path}")
    except RunError as error:
        raise RunError(f"{error}{noted}") from None
    return f"{name}: downloaded to {path}{noted}"


def _filled_in(text: str, inputs_dir: Path) -> str:
    return text.replace("{inputs}", str(inputs_dir)).replace("{torch}", str(torch_cache()))


# --- files under another name ---------------------------------------------------------------------------------------


def _adopt(one: Input, path: Path, inputs_dir: Path) -> tuple[Path | None, list[str]]:
    """The file under another name that was linked to `path`, if any, and notes on rejected candidates.

    Raises RunError: a file that may be the input, without a published digest to decide.
    """
    notes = []
    for candidate in _candidates(one, path, inputs_dir):
        if one.kind != "file" or one.source is None or (one.source.digest is None and one.source.size is None):
            raise RunError(
                f"{candidate} may be {one.about}, but no digest is published; if it is, rename it to {path}, "
                "else move it away and try again"
            )
        if what := difference(one.source, candidate):
            notes.append(f"{candidate} is not {one.about}: {what}")
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(candidate, path)
        except OSError:  # another disk, or one without links
            with atomic_write(path) as tmp_path:
                shutil.copyfile(candidate, tmp_path)
        return candidate, notes
    return None, notes


def _candidates(one: Input, path: Path, inputs_dir: Path) -> list[Path]:
    """Files in the folder of inputs with another usual name, or with the number that a browser gives a second copy."""
    found = []
    for name in (path.name, *one.other_names):
        first = inputs_dir / name
        pattern = f"{glob.escape(first.stem)} ([0-9]){first.suffix}"
        found += [first, *(sorted(first.parent.glob(pattern)) if first.parent.is_dir() else [])]
    return [file for file in found if file.is_file() and file != path]


# --- models of the hub ----------------------------------------------------------------------------------------------


def _is_cached(one: Input) -> bool:
    """Whether all files of a model are in the hub's cache."""

    def are_there(names: Iterable[str]) -> bool:
        assert one.hub is not None
        found = (try_to_load_from_cache(one.hub, file, revision=one.revision) for file in names if "*" not in file)
        return all(isinstance(file, str) for file in found)

    layout = LAYOUTS[one.kind]
    return are_there(layout.files) and any(are_there(names) for names in layout.weights)


def _fetch_model(one: Input, quiet: bool) -> None:
    """Downloads what is needed of a model to the hub's cache. Raises RunError."""
    assert one.hub is not None
    silent = hub_utils.are_progress_bars_disabled()
    try:
        info = HfApi().model_info(one.hub, revision=one.revision, files_metadata=True, timeout=TIMEOUT)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        layout = LAYOUTS[one.kind]
        weights = next((names for names in layout.weights if sizes.keys() >= set(names)), None)
        if weights is None:
            raise RunError(f"{one.origin} has none of the weights that are needed, {' or '.join(layout.weights[0])}")
        wanted = [*layout.files, *weights]
        to_come = [file for file in sizes if any(fnmatch.fnmatch(file, pattern) for pattern in wanted)]
        to_come = [
            file for file in to_come if not isinstance(try_to_load_from_cache(one.hub, file, revision=info.sha), str)
        ]
        check_room(Path(constants.HF_HUB_CACHE), sum(sizes[file] for file in to_come))
        if quiet and not silent:
            hub_utils.disable_progress_bars()
        snapshot_download(one.hub, revision=one.revision, allow_patterns=wanted)
    except hub_utils.GatedRepoError:
        raise RunError(f"accept the licence at {one.origin}, and run huggingface-cli login") from None
    except hub_utils.RepositoryNotFoundError:
        raise RunError(f"the hub has no {one.hub}, or requires huggingface-cli login for it") from None
    except hub_utils.OfflineModeIsEnabled:
        raise RunError(
            f"cannot download {one.origin}: HF_HUB_OFFLINE is set; unset it, or copy the hub's cache"
        ) from None
    except OSError as error:
        raise RunError(
            f"cannot download {one.origin}: {reason(error)}; or copy the hub's cache of a machine that has it"
        ) from None
    finally:
        if quiet and not silent:
            hub_utils.enable_progress_bars()
    if not _is_cached(one):  # if the connection is lost midway, the hub's library returns what it has
        raise RunError(f"the download of {one.origin} is incomplete; try again")
