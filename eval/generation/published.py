"""Downloads PartiPrompts and COCO's captions from where they are published."""

from __future__ import annotations

import zipfile
from pathlib import Path

from common.download import Download, download, download_and_unpack, torch_cache

PARTI_FILE = "PartiPrompts.tsv"
PARTI = Download(
    "https://raw.githubusercontent.com/google-research/parti/2c99f6652cbc7f0d0441aa91f4c7e7055bcb0071/PartiPrompts.tsv",
    "sha256:fab29e41bb512a169b56acab4cf2a41dcb675e285df2efcde6640c7dd3c440eb",
)
COCO_FILE = "captions_val2017.json"
COCO = Download(  # 253 MB, 4 MB of which are needed
    "http://images.cocodataset.org/annotations/annotations_trainval2017.zip", "md5:f4bbac642086de4f52a3fdda2de5fa2c"
)


def parti_prompts(*, quiet: bool = False) -> Path:
    """The file of the PartiPrompts in torch.hub's cache, downloaded if necessary. Raises RunError."""
    path = torch_cache("prompts", PARTI_FILE)
    if not path.is_file():
        download(PARTI, path, quiet=quiet, remedy=_remedy(path))
    return path


def coco_captions(path: Path | None = None, *, quiet: bool = False) -> Path:
    """The file of COCO's captions, at `path` or in torch.hub's cache, downloaded if necessary.

    Raises RunError: it can't be downloaded.
    """
    path = path or torch_cache("prompts", COCO_FILE)
    if not path.is_file():
        download_and_unpack(COCO, path, captions, quiet=quiet, remedy=_remedy(path))
    return path


def captions(archive: Path, path: Path) -> None:
    """Extracts the captions of the validation set from COCO's archive. Raises KeyError if it has none."""
    with zipfile.ZipFile(archive) as members:
        path.write_bytes(members.read(f"annotations/{COCO_FILE}"))


def _remedy(path: Path) -> str:
    return f"put {path.name} at {path}, or pass its path to --prompts"
