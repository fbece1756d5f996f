"""Sets of prompts: PartiPrompts, captions of COCO 2017, captions of coloured shapes, or a file of one's own."""

from __future__ import annotations

import csv
import hashlib
import json
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common.command_line import RunError
from common.files import atomic_write
from image_sets.reading import read_prompts
from shapes.scenes import held_out_scene

NAMES = ("parti", "coco", "shapes")

PARTI_URL = (
    "https://raw.githubusercontent.com/google-research/parti/2c99f6652cbc7f0d0441aa91f4c7e7055bcb0071/PartiPrompts.tsv"
)
PARTI_SHA256 = "fab29e41bb512a169b56acab4cf2a41dcb675e285df2efcde6640c7dd3c440eb"
COCO_URL = "http://images.cocodataset.org/annotations/annotations_trainval2017.zip"  # 253 MB; 4 MB of it are wanted
COCO_MD5 = "f4bbac642086de4f52a3fdda2de5fa2c"
COCO_FILE = "captions_val2017.json"

SHAPES_NUMBER = 256  # captions where no number is asked for


@dataclass(frozen=True)
class PromptSet:
    """Prompts by index. Each is one line, with no space that a tokenizer would drop."""

    name: str
    count: int | None  # None: there is no end
    digest: str  # sixteen hexadecimal digits of the SHA-256 of all prompts, or of the first 256 where there is no end
    text: Callable[[int], str]

    def first(self, number: int) -> list[str]:
        """The first prompts. Raises ValueError if there are not as many."""
        if self.count is not None and number > self.count:
            raise ValueError(f"--num-images is {number}, and {self.name} has {self.count} prompts; ask for no more")
        return [self.text(k) for k in range(number)]


def open_prompts(source: str, *, quiet: bool = False) -> PromptSet:
    """The set of prompts that `source` names.

    Args:
        source: `parti`, the 1632 PartiPrompts; `coco`, the first caption of each of the 5000 images of MS-COCO 2017's
            validation set; `shapes`, captions of two things each that the shipped models were not trained on; or a
            file: `.tsv` with a column Prompt, `.json` of COCO captions or with a list of texts, or one prompt a line.

    Raises:
        ValueError: no such file, or something else in it.
        RunError: prompts that are to be downloaded and can't be.
    """
    if source == "shapes":
        return PromptSet("shapes", None, digest(shapes_caption(k) for k in range(SHAPES_NUMBER)), shapes_caption)
    path = {"parti": _parti, "coco": _coco}[source](quiet) if source in NAMES else Path(source)
    if not path.is_file():
        raise ValueError(
            f"there is no file of prompts {source}; --prompts is {', '.join(NAMES)} or a file: "
            ".tsv with a column Prompt, .json of COCO captions, or text with one prompt a line"
        )
    if path.suffix == ".tsv":
        texts = _read_tsv(path)
    elif path.suffix == ".json":
        texts = _read_json(path)
    else:
        texts = read_prompts(path)
    # Tokenizers take any space for one. Some captions of COCO end in a line break; a list has each on one line.
    texts = [" ".join(text.split()) for text in texts]
    if not texts or "" in texts:
        raise ValueError(f"prompt {texts.index('')} of {path} is empty" if texts else f"{path} has no prompts")
    return PromptSet(source if source in NAMES else path.name, len(texts), digest(texts), texts.__getitem__)


def shapes_caption(index: int) -> str:
    """A caption that was held out of all training, the same whatever else is asked for."""
    return held_out_scene(index).caption


def digest(texts: Iterable[str]) -> str:
    """Tells lists of prompts apart: sixteen hexadecimal digits of the SHA-256 of their lines."""
    return hashlib.sha256("".join(f"{text}\n" for text in texts).encode()).hexdigest()[:16]


def _read_tsv(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            # Quotation marks around a whole field are the format's, as in the hub's copy that the original reads.
            rows = csv.DictReader(file, delimiter="\t")
            if "Prompt" not in (rows.fieldnames or ()):
                raise ValueError(f"{path} has no column Prompt; its first line names the columns, between tabs")
            return [row["Prompt"] or "" for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"cannot read the prompts {path}: {error}") from None


def _read_json(path: Path) -> list[str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read the prompts {path}: {error}") from None
    return _first_captions(path, content) if isinstance(content, dict) else read_prompts(path)


def _first_captions(path: Path, content: dict[str, Any]) -> list[str]:
    """Of each image of COCO's, in the order of its list of images, the caption that comes first in the file."""
    first: dict[Any, str] = {}
    try:
        for annotation in content["annotations"]:
            first.setdefault(annotation["image_id"], annotation["caption"].strip())
        return [first[image["id"]] for image in content["images"]]
    except (KeyError, TypeError, AttributeError):
        what = "images with an id, annotations with image_id and caption"
        raise ValueError(f"{path} does not hold captions as COCO's files do: {what}") from None


def _cached(file: str) -> Path:
    return Path(torch.hub.get_dir()) / "prompts" / file


def _parti(quiet: bool) -> Path:
    path = _cached("PartiPrompts.tsv")
    if not path.is_file():
        _download(PARTI_URL, path, "PartiPrompts.tsv", quiet, hash_prefix=PARTI_SHA256)
    return path


def _coco(quiet: bool) -> Path:
    path = _cached(COCO_FILE)
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # the archive is of no use when it is unpacked
        archive = Path(folder) / "annotations.zip"
        _download(COCO_URL, archive, COCO_FILE, quiet)
        with archive.open("rb") as file:
            if hashlib.file_digest(file, "md5").hexdigest() != COCO_MD5:
                raise RunError(f"what came from {COCO_URL} is damaged; start again, or pass --prompts {COCO_FILE}")
        with zipfile.ZipFile(archive) as members, atomic_write(path) as tmp_path:
            tmp_path.write_bytes(members.read(f"annotations/{COCO_FILE}"))
    return path


def _download(url: str, path: Path, file: str, quiet: bool, **check: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:  # written to a temporary file, checked, renamed
        torch.hub.download_url_to_file(url, str(path), progress=not quiet, **check)
    except (OSError, RuntimeError) as error:
        where = _cached(file)
        raise RunError(
            f"cannot download {url}: {error}; put {file} at {where}, or pass its path to --prompts"
        ) from None
