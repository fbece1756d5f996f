"""Digests of files and models: remembered for as long as the file is the same."""

import hashlib
import os
import shutil
import time
from pathlib import Path

import pytest

import common.digests
from common.digests import file_digest, model_digest
from common.shipped import SHAPES_LDM

BIG = common.digests.CACHED_FROM


def write(path: Path, content: bytes, age: float = 10.0) -> Path:
    """A file that was written some seconds ago."""
    path.write_bytes(content)
    then = time.time_ns() - int(age * 1e9)
    os.utime(path, ns=(then, then))
    return path


@pytest.fixture
def reads(monkeypatch) -> list[Path]:
    """The files that were read."""
    found: list[Path] = []
    digest = common.digests._digest

    def read(path: Path) -> str:
        found.append(path)
        return digest(path)

    monkeypatch.setattr(common.digests, "_digest", read)
    return found


def test_a_large_file_is_read_once_and_again_after_it_changes(tmp_path, reads):
    file = write(tmp_path / "a.npz", bytes(BIG))
    expected = hashlib.sha256(bytes(BIG)).hexdigest()
    assert file_digest(file) == file_digest(file) == expected
    assert reads == [file]
    write(file, b"x" * BIG, age=9)  # as large, changed later
    assert file_digest(file) == hashlib.sha256(b"x" * BIG).hexdigest()
    write(tmp_path / "b.npz", bytes(BIG), age=9).replace(file)  # another inode
    assert file_digest(file) == expected
    assert len(reads) == 3


def test_a_file_that_was_just_written_and_a_small_one_are_not_remembered(tmp_path, reads):
    for content, age in ((bytes(BIG), 0.0), (bytes(BIG - 1), 10.0)):
        file = write(tmp_path / f"{age}", content, age)
        assert file_digest(file) == file_digest(file)
    assert len(reads) == 4


def test_without_a_cache_that_can_be_written_digests_are_right(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    file = write(tmp_path / "a", bytes(BIG))
    assert file_digest(file) == hashlib.sha256(bytes(BIG)).hexdigest()


def test_a_damaged_note_is_not_believed(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = write(tmp_path / "a", bytes(BIG))
    expected = file_digest(file)
    (note,) = (tmp_path / "cache").rglob("digests/*")
    note.write_text("no digest")
    assert file_digest(file) == expected


def test_a_model_is_its_weights_and_configuration_and_not_the_notes_beside_them(tmp_path):
    model = tmp_path / "model"
    shutil.copytree(SHAPES_LDM, model)
    first = model_digest(model)
    (model / "README.md").write_text("other words")
    (model / "new.jsonl").write_text("{}")
    assert model_digest(model) == first == model_digest(SHAPES_LDM)
    for name in ("model_index.json", "unet/config.json", "vqvae/diffusion_pytorch_model.safetensors"):
        content = (model / name).read_bytes()
        (model / name).write_bytes(content + b" ")
        assert model_digest(model) != first
        (model / name).write_bytes(content)
    (model / "unet/config.json").rename(model / "unet/other.json")
    assert model_digest(model) != first
