"""Downloads: resumed after an interruption, verified, and renamed into place only once they are complete."""

from __future__ import annotations

import os
import shutil
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pooch
import requests
from filelock import FileLock
from tqdm import tqdm

from .command_line import RunError
from .files import atomic_write

TIMEOUT = 60.0  # seconds without an answer
TRIES = 3  # consecutive ones without progress
WAIT = 1.0  # seconds before the second, twice that before the third
CHUNK = 1 << 16  # bytes; a partial chunk is lost


@dataclass(frozen=True)
class Download:
    """A file on the internet, with its published digest and size."""

    url: str
    digest: str | None = None  # md5:… or sha256:…, in hexadecimal
    size: int | None = None  # bytes


def download(source: Download, path: Path, *, quiet: bool = False, remedy: str = "") -> None:
    """Downloads a file to `path` unless it exists; resumes `PATH.part` if an earlier try left one.

    Args:
        remedy: advice for the error message, besides trying again.

    Raises:
        RunError: no connection, no disk space, or not the published file, which is then removed.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        with one_at_a_time(path):
            if not path.is_file():
                pooch.get_logger().setLevel("ERROR")
                resume = Resume(part, source.size, quiet)
                pooch.retrieve(source.url, source.digest, path.name, path.parent, downloader=resume)
    except OSError as error:  # requests' errors included
        raise RunError(f"cannot download {source.url}: {reason(error)}{remedy and '; '}{remedy}") from None
    except ValueError as error:
        part.unlink(missing_ok=True)
        what = str(error).partition(". Deleted")[0]  # pooch says more than that
        raise RunError(
            f"the file from {source.url} is damaged or not the published one and was removed ({what}); "
            f"try again{remedy and ', or '}{remedy}"
        ) from None


def download_and_unpack(
    source: Download, path: Path, unpack: Callable[[Path, Path], None], *, quiet: bool = False, remedy: str = ""
) -> None:
    """Downloads an archive and calls `unpack(archive, tmp_path)` to extract what is needed, unless `path` exists.

    The archive is downloaded to the same folder, and removed afterwards unless it existed before.

    Raises:
        RunError: as `download`; or the archive holds something else.
    """
    archive = path.with_name(source.url.rsplit("/", 1)[1])
    with one_at_a_time(path):
        if path.is_file():
            return
        is_users_own = archive.is_file()
        download(source, archive, quiet=quiet, remedy=remedy)
        try:
            if is_users_own and (what := difference(source, archive)):
                raise ValueError(what)
            with atomic_write(path) as tmp_path:
                unpack(archive, tmp_path)
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile, tarfile.TarError) as error:
            what = f"{archive} is damaged or not the expected archive ({error})"
            raise RunError(f"{what}; move it away and try again") from None
        finally:
            if not is_users_own:
                archive.unlink(missing_ok=True)


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Lets one process at a time make this file; creates its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock := path.with_name(f".{path.name}.lock")):
        yield
    lock.unlink(missing_ok=True)  # never before the file exists, or two processes could hold different locks


def difference(source: Download, path: Path) -> str | None:
    """How a file differs from what is published; None if it doesn't, or nothing is."""
    if source.size is not None and (size := path.stat().st_size) != source.size:
        return f"it has {size:,} bytes instead of {source.size:,}"
    if source.digest is not None:
        algorithm, expected = source.digest.split(":")
        if (found := pooch.file_hash(str(path), alg=algorithm)) != expected:
            return f"its {algorithm} is {found} instead of {expected}"
    return None


def check_room(folder: Path, size: int) -> None:
    """Raises OSError if the disk of a folder, existing or not, has less free space than that."""
    while not folder.exists():
        folder = folder.parent
    if (free := shutil.disk_usage(folder).free) < size:
        raise OSError(f"{size / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are free in {folder}")


def reason(error: Exception) -> str:
    """What went wrong, in a few words; requests' own messages fill several lines."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server says {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout) or "timed out" in str(error):
        return "the connection timed out"
    if isinstance(error, requests.exceptions.ChunkedEncodingError) or "IncompleteRead" in str(error):
        return "the connection was lost; rerun the same command to resume"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    return " ".join(str(error).split()) or type(error).__name__


def torch_cache(*names: str) -> Path:
    """A path in `torch.hub.get_dir()`, without importing torch, which takes seconds."""
    home = os.environ.get("TORCH_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "torch")
    return Path(home).expanduser().joinpath("hub", *names)


@dataclass(frozen=True)
class Resume:
    """A downloader for pooch that resumes where an earlier try stopped."""

    part: Path
    size: int | None
    quiet: bool

    def __call__(self, url: str, output_file: str, _: object) -> None:
        failures = 0
        while True:
            before = self._size_so_far()
            try:
                self._get(url, before)
                break
            except requests.RequestException as error:
                response = error.response
                if response is not None and response.status_code < 500:  # trying again won't help
                    raise
                failures = failures + 1 if self._size_so_far() <= before else 1
                if failures >= TRIES:
                    raise
                time.sleep(WAIT * failures)
        os.replace(self.part, output_file)

    def _size_so_far(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0

    def _get(self, url: str, start: int) -> None:
        if start == self.size:
            return
        # If the server compressed the rest, it would not continue the bytes on disk.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            if response.status_code == 416:  # no bytes after these
                if response.headers.get("Content-Range") == f"bytes */{start}":
                    return
                self.part.unlink()
                raise requests.ConnectionError("the part was longer than the file")
            response.raise_for_status()
            if response.headers.get("Content-Type", "").startswith("text/html"):
                raise ValueError("it is a web page")
            if not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                start = 0  # the server sends all of it
            total = start + int(response.headers["Content-Length"]) if "Content-Length" in response.headers else None
            if total is not None and self.size is not None and total != self.size:
                raise ValueError(f"it has {total:,} bytes instead of {self.size:,}")
            check_room(self.part.parent, 0 if total is None else total - start)
            bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=self.part.stem, disable=self.quiet)
            with bar, self.part.open("ab" if start else "wb") as file:
                for chunk in response.iter_content(CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
        if self.size is not None and self._size_so_far() != self.size:
            raise ValueError(f"it has {self._size_so_far():,} bytes instead of {self.size:,}")
