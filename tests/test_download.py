"""Files from a server that cuts, lies, stalls or supports no ranges: complete and verified, or absent."""

import multiprocessing
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from common import download as downloads
from common.command_line import RunError
from common.download import CHUNK, Download, download, torch_cache
from tests.local_hub import CONTENT, MD5, SHA256, LocalHub, Served, names_in


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(downloads, "WAIT", 0.01)
    monkeypatch.setattr(downloads, "TIMEOUT", 5.0)


def get(hub: LocalHub, folder: Path, digest: str | None = SHA256, size: int | None = None) -> Path:
    """Downloads x.bin."""
    download(Download(hub.url_of("x.bin"), digest, size), folder / "x.bin", quiet=True, remedy="ask a friend")
    return folder / "x.bin"


@pytest.mark.parametrize("digest", [SHA256, MD5, None])
def test_a_file_comes_whole_and_once(tmp_path, digest):
    with LocalHub(files={"x.bin": CONTENT}) as hub:
        for _ in range(2):
            assert get(hub, tmp_path / "new", digest).read_bytes() == CONTENT
        assert hub.downloads("x.bin") == [None]
    assert names_in(tmp_path / "new") == {"x.bin"}


def test_a_connection_that_breaks_off_is_continued_at_once(tmp_path):
    with LocalHub(files={"x.bin": Served(CONTENT, cuts=[2 * CHUNK, CHUNK + 5])}) as hub:
        assert get(hub, tmp_path).read_bytes() == CONTENT
        assert hub.downloads("x.bin") == [None, f"bytes={2 * CHUNK}-", f"bytes={3 * CHUNK}-"]


def test_a_download_that_was_given_up_is_continued_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "TRIES", 1)
    with LocalHub(files={"x.bin": Served(CONTENT, cuts=[CHUNK])}) as hub:
        with pytest.raises(RunError, match=r"cannot download http.*was lost; rerun the same command to resume; ask a"):
            get(hub, tmp_path)
        assert names_in(tmp_path) == {"x.bin.part", ".x.bin.lock"}
        assert (tmp_path / "x.bin.part").read_bytes() == CONTENT[:CHUNK]
        assert get(hub, tmp_path).read_bytes() == CONTENT
        assert hub.downloads("x.bin")[1:] == [f"bytes={CHUNK}-"]
    assert names_in(tmp_path) == {"x.bin"}


@pytest.mark.parametrize(
    ("part", "asked"),
    [(CONTENT, ["bytes=300000-"]), (CONTENT + b"more", ["bytes=300004-", None]), (CONTENT[:-1], ["bytes=299999-"])],
)
def test_a_part_that_is_whole_or_longer_than_the_file(tmp_path, part, asked):
    (tmp_path / "x.bin.part").write_bytes(part)
    with LocalHub(files={"x.bin": CONTENT}) as hub:
        assert get(hub, tmp_path).read_bytes() == CONTENT
        assert hub.downloads("x.bin") == asked


def test_a_server_that_knows_no_ranges_starts_over(tmp_path):
    with LocalHub(files={"x.bin": Served(CONTENT, cuts=[CHUNK], ranges=False)}) as hub:
        assert get(hub, tmp_path).read_bytes() == CONTENT
        assert hub.downloads("x.bin") == [None, f"bytes={CHUNK}-"]


@pytest.mark.parametrize(
    ("served", "digest", "size", "says"),
    [
        (Served(CONTENT[:-1] + b"?"), SHA256, None, "SHA256"),
        (Served(CONTENT[:-1] + b"?"), MD5, 300_000, "MD5"),
        (Served(CONTENT[:-1]), None, 300_000, "it has 299,999 bytes instead of 300,000"),
        (Served(b"<html>Log in</html>", content_type="text/html; charset=utf-8"), None, None, "it is a web page"),
    ],
)
def test_another_file_is_refused_and_removed(tmp_path, served, digest, size, says):
    with LocalHub(files={"x.bin": served}) as hub, pytest.raises(RunError) as raised:
        get(hub, tmp_path, digest, size)
    url = hub.url_of("x.bin")
    assert str(raised.value).startswith(f"the file from {url} is damaged or not the published one and was removed (")
    assert says in str(raised.value) and str(raised.value).endswith("try again, or ask a friend")
    assert names_in(tmp_path) <= {".x.bin.lock"}


def test_a_wrong_part_is_found_out(tmp_path):
    (tmp_path / "x.bin.part").write_bytes(b"of another file")
    with LocalHub(files={"x.bin": CONTENT}) as hub:
        with pytest.raises(RunError, match="was removed"):
            get(hub, tmp_path)
        assert get(hub, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("served", "says", "tries"),
    [
        (Served(CONTENT, delay=1.0), "the connection timed out", 3),
        (Served(b"", status=503), "the server says 503 Service Unavailable", 3),
        (Served(b"", status=404), "the server says 404 Not Found", 1),
    ],
)
def test_a_server_that_does_not_deliver(tmp_path, monkeypatch, served, says, tries):
    monkeypatch.setattr(downloads, "TIMEOUT", 0.1)
    with LocalHub(files={"x.bin": served}) as hub:
        with pytest.raises(RunError, match=f"^cannot download http.*/x.bin: {says}; ask a friend$"):
            get(hub, tmp_path)
        assert len(hub.downloads("x.bin")) == tries


def test_no_server(tmp_path):
    with pytest.raises(RunError, match=r"^cannot download http://127\.0\.0\.1:9/x: no connection$"):
        download(Download("http://127.0.0.1:9/x"), tmp_path / "x", quiet=True)


def test_a_full_disk(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: usage(10**6, 10**6 - 10**5, 10**5))
    with LocalHub(files={"x.bin": CONTENT}) as hub, pytest.raises(RunError, match=r"0\.00 GB are needed and 0\.00 GB"):
        get(hub, tmp_path)
    assert names_in(tmp_path) == {".x.bin.lock"}


def test_processes_share_one_download(tmp_path):
    with LocalHub(files={"x.bin": Served(CONTENT, delay=0.3)}) as hub:
        fork = multiprocessing.get_context("fork")
        others = [fork.Process(target=get, args=(hub, tmp_path)) for _ in range(3)]
        for process in others:
            process.start()
        for process in others:
            process.join()
        assert [process.exitcode for process in others] == [0, 0, 0]
        assert len(hub.downloads("x.bin")) == 1
    assert (tmp_path / "x.bin").read_bytes() == CONTENT


def test_progress_is_shown_unless_quiet(tmp_path, capsys):
    with LocalHub(files={"x.bin": CONTENT}) as hub:
        download(Download(hub.url_of("x.bin")), tmp_path / "x.bin")
        assert "x.bin: 100%" in capsys.readouterr().err
        get(hub, tmp_path / "quiet")
        assert capsys.readouterr() == ("", "")


def test_torchs_cache_is_where_torch_has_it(monkeypatch):
    for name, value in (("TORCH_HOME", None), ("TORCH_HOME", "~/t"), ("XDG_CACHE_HOME", "/x")):
        monkeypatch.delenv("TORCH_HOME", raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
        assert str(torch_cache()) == torch.hub.get_dir()
