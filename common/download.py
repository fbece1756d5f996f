"""Files from the internet: continued where they broke off, checked, and under their name only once they are whole."""

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
TRIES = 3  # in a row that bring nothing
WAIT = 1.0  # seconds before the second, twice that before the third
CHUNK = 1 << 16  # bytes; what came of one that breaks off is lost


@dataclass(frozen=True)
class Download:
    """A file on the internet, and what is published of it."""

    url: str
    digest: str | None = None  # md5:… or sha256:…, in hexadecimal
    size: int | None = None  # bytes


def download(source: Download, path: Path, *, quiet: bool = False, remedy: str = "") -> None:
    """Downloads a file to `path` unless it is there; continues `PATH.part` if an earlier try left one.

    Args:
        remedy: what the error says to do, besides trying again.

    Raises:
        RunError: no connection, no room, or not the published file; what came of another file is removed.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        with one_at_a_time(path):
            if not path.is_file():
                pooch.get_logger().setLevel("ERROR")
                resume = Resume(part, source.size, quiet)
                pooch.retrieve(source.url, source.digest, path.name, path.parent, downloader=resume)
    except OSError as error:  # requests' errors are among them
        raise RunError(f"cannot download {source.url}: {reason(error)}{remedy and '; '}{remedy}") from None
    except ValueError as error:
        part.unlink(missing_ok=True)
        what = str(error).partition(". Deleted")[0]  # pooch says more of it
        raise RunError(
            f"what {source.url} sent is damaged or another file and was removed ({what}); "
            f"try again{remedy and ', or '}{remedy}"
        ) from None


def download_and_unpack(
    source: Download, path: Path, unpack: Callable[[Path, Path], None], *, quiet: bool = False, remedy: str = ""
) -> None:
    """Downloads an archive, and has `unpack(archive, tmp_path)` write what is wanted of it, unless `path` is there.

    The archive is downloaded to the same folder, and removed in the end unless it was there before.

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
            raise RunError(f"{archive} is damaged or another archive ({error}); move it away and try again") from None
        finally:
            if not is_users_own:
                archive.unlink(missing_ok=True)


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Of all processes that want to make this file, one at a time is inside; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock := path.with_name(f".{path.name}.lock")):
        yield
    lock.unlink(missing_ok=True)  # never before the file is there: two could then hold different locks


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
    """Raises OSError if so many bytes are not free where a folder is, or will be made."""
    while not folder.exists():
        folder = folder.parent
    if (free := shutil.disk_usage(folder).free) < size:
        raise OSError(f"{size / 1e9:.2f} GB are wanted and {free / 1e9:.2f} GB are free in {folder}")


def reason(error: Exception) -> str:
    """What went wrong, in a few words; the errors of requests fill several lines."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server says {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout) or "timed out" in str(error):
        return "no answer in time"
    if isinstance(error, requests.exceptions.ChunkedEncodingError) or "IncompleteRead" in str(error):
        return "the connection broke off; the same command continues"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    return " ".join(str(error).split()) or type(error).__name__


def torch_cache(*names: str) -> Path:
    """A place in `torch.hub.get_dir()`, without importing torch, which takes seconds."""
    home = os.environ.get("TORCH_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "torch")
    return Path(home).expanduser().joinpath("hub", *names)


@dataclass(frozen=True)
class Resume:
    """pooch's downloader, but one that goes on where an earlier try ended."""

    part: Path
    size: int | None
    quiet: bool

    def __call__(self, url: str, output_file: str, _: object) -> None:
        failures = 0
        while True:
            before = self._there()
            try:
                self._get(url, before)
                break
            except requests.RequestException as error:
                response = error.response
                if response is not None and response.status_code < 500:  # it won't be there in a second either
                    raise
                failures = failures + 1 if self._there() <= before else 1
                if failures >= TRIES:
                    raise
                time.sleep(WAIT * failures)
        os.replace(self.part, output_file)

    def _there(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0

    def _get(self, url: str, start: int) -> None:
        if start == self.size:
            return
        # Compressed, the bytes that are there could not be told from those that are wanted.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            if response.status_code == 416:  # nothing comes after these bytes
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
        if self.size is not None and self._there() != self.size:
            raise ValueError(f"it has {self._there():,} bytes instead of {self.size:,}")
