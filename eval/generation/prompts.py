"""Sets of prompts: PartiPrompts, captions of COCO 2017, captions of coloured shapes, or a file."""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.reading import read_json, read_text
from common.words import counted
from image_sets.reading import PROMPTS, checked_prompts, read_prompts
from shapes.scenes import held_out_scene

from .published import coco_captions, parti_prompts

NAMES = ("parti", "coco", "shapes")

SHAPES_NUMBER = 256  # default number of captions


@dataclass(frozen=True)
class PromptSet:
    """Prompts by index. Each is one line, with no space that a tokenizer would drop."""

    name: str
    count: int | None  # None: unlimited
    digest: str  # sixteen hexadecimal digits of the SHA-256 of all prompts, or of the first 256 if unlimited
    text: Callable[[int], str]

    def first(self, number: int) -> list[str]:
        """The first `number` prompts. Raises ValueError if there are fewer."""
        if self.count is not None and number > self.count:
            raise ValueError(
                f"--num-images is {number}, and {self.name} has {counted(self.count, 'prompt')}; ask for no more"
            )
        return [self.text(k) for k in range(number)]


def open_prompts(source: str, *, quiet: bool = False) -> PromptSet:
    """The set of prompts that `source` names.

    Args:
        source: `parti`, the 1632 PartiPrompts; `coco`, the first caption of each of the 5000 images of MS-COCO 2017's
            validation set; `shapes`, captions of two things each that the shipped models were not trained on; or a
            file: `.tsv` with a column Prompt, `.json` of COCO captions or with a list of texts, or one prompt a line.

    Raises:
        ValueError: no such file, or something else in it.
        RunError: the prompts can't be downloaded.
    """
    if source == "shapes":
        return PromptSet("shapes", None, _shapes_digest(), shapes_caption)
    if source == "parti":
        path = parti_prompts(quiet=quiet)
    elif source == "coco":
        path = coco_captions(quiet=quiet)
    else:
        path = Path(source)
    if not os.path.isfile(path):  # pathlib's own raises for a name that is too long
        raise ValueError(
            f"there is no file of prompts {source}; --prompts is {', '.join(NAMES)} or a file: "
            ".tsv with a column Prompt, .json of COCO captions, or text with one prompt a line"
        )
    if (kind := path.suffix.lower()) == ".tsv":
        texts = _read_tsv(path)
    elif kind == ".json":
        texts = _read_json(path)
    else:
        texts = read_prompts(path)
    # Tokenizers treat all whitespace alike. Some captions of COCO end in a line break; here each must be one line.
    texts = [" ".join(text.split()) for text in checked_prompts(path, texts)]
    if not texts or "" in texts:
        raise ValueError(f"prompt {texts.index('')} of {path} is empty" if texts else f"{path} has no prompts")
    return PromptSet(source if source in NAMES else path.name, len(texts), digest(texts), texts.__getitem__)


def shapes_caption(index: int) -> str:
    """A caption that was held out of all training, determined by its index only."""
    return held_out_scene(index).caption


@functools.cache
def _shapes_digest() -> str:
    return digest(shapes_caption(k) for k in range(SHAPES_NUMBER))


def digest(texts: Iterable[str]) -> str:
    """Identifies a list of prompts: sixteen hexadecimal digits of the SHA-256 of its lines."""
    return hashlib.sha256("".join(f"{text}\n" for text in texts).encode()).hexdigest()[:16]


def _read_tsv(path: Path) -> list[str]:
    # Quotation marks around a whole field belong to the format, as in the hub's copy that the original reads.
    rows = csv.DictReader(io.StringIO(read_text(path, PROMPTS)), delimiter="\t")
    try:
        if "Prompt" not in (rows.fieldnames or ()):
            raise ValueError(f"{path} has no column Prompt; its first line names the columns, between tabs")
        return [row["Prompt"] or "" for row in rows]
    except csv.Error as error:
        raise ValueError(
            f"cannot read the prompts {path}: {error} (line {rows.line_num}); close each quotation mark, or {PROMPTS}"
        ) from None


def _read_json(path: Path) -> list[str]:
    content = read_json(path, dict, list, remedy=PROMPTS)
    return _first_captions(path, content) if isinstance(content, dict) else content


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
