"""A hub of models and a server of files on the loopback, which can also be as bad as the internet."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

CONTENT = np.random.default_rng(0).bytes(300_000)
MD5 = f"md5:{hashlib.md5(CONTENT).hexdigest()}"
SHA256 = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


@dataclass
class Served:
    """A file, and the faults with which it is served."""

    content: bytes
    cuts: list[int] = field(default_factory=list)  # bytes after which the first answers break off, one a request
    ranges: bool = True  # whether a part can be asked for
    delay: float = 0.0  # seconds before an answer
    status: int = 200
    content_type: str = "application/octet-stream"


class LocalHub:
    """A context in which `url` serves repositories of models as the hub does (HF_ENDPOINT), and files by their names.

    Args:
        repos: folders of models by their ids.
        files: by name; `url_of(name)` is the address of one.
    """

    def __init__(self, repos: Mapping[str, Path] | None = None, files: Mapping[str, Served | bytes] | None = None):
        self.repos = dict(repos or {})
        self.files = {name: file if isinstance(file, Served) else Served(file) for name, file in (files or {}).items()}
        self.requests: list[tuple[str, str, str | None]] = []  # method, path, the range asked for
        self._server = _Server(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> LocalHub:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def url_of(self, name: str) -> str:
        """The address of a file."""
        return f"{self.url}/files/{name}"

    def downloads(self, name: str) -> list[str | None]:
        """The ranges of a file's downloads."""
        return [asked for method, path, asked in self.requests if method == "GET" and path.endswith(f"/{name}")]

    def repo_of(self, path: str) -> tuple[str, Path] | None:
        """The id and the folder of the repository that a path of the hub begins with."""
        found = [name for name in self.repos if f"{path}/".startswith(f"{name}/")]
        return (found[0], self.repos[found[0]]) if found else None


def revision_of(folder: Path) -> str:
    """What stands for a commit: a digest of the names and sizes in a folder."""
    listing = [(file.relative_to(folder).as_posix(), file.stat().st_size) for file in _files(folder)]
    return hashlib.sha1(json.dumps(listing).encode()).hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that gave up, which is what some tests are about, is not worth a word."""


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path).lstrip("/")
        self.hub.requests.append((self.command, f"/{path}", self.headers.get("Range")))
        if path.startswith("files/"):
            file = self.hub.files.get(path.removeprefix("files/"))
            if file is None:
                self._send(404, b"")
            else:
                self._send_file(file, {})
        elif path.startswith("api/models/"):
            self._send_info(path.removeprefix("api/models/"))
        else:
            self._send_of_repo(path)

    def _send_info(self, path: str) -> None:
        """/api/models/ID and /api/models/ID/revision/REVISION"""
        if (found := self.hub.repo_of(path)) is None:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            return
        name, folder = found
        siblings = [
            {"rfilename": file.relative_to(folder).as_posix(), "size": file.stat().st_size} for file in _files(folder)
        ]
        info = {"id": name, "modelId": name, "sha": revision_of(folder), "private": False, "gated": False,
                "tags": [], "siblings": siblings}  # fmt: skip
        self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def _send_of_repo(self, path: str) -> None:
        """/ID/resolve/REVISION/FILE"""
        if (found := self.hub.repo_of(path)) is None:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
            return
        name, folder = found
        file = folder.joinpath(*path.removeprefix(f"{name}/").split("/")[2:])
        commit = {"X-Repo-Commit": revision_of(folder)}
        if not file.is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", **commit})
            return
        content = file.read_bytes()
        self._send_file(Served(content), {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', **commit})

    def _send_file(self, file: Served, headers: dict[str, str]) -> None:
        time.sleep(file.delay)
        headers = {"Content-Type": file.content_type, **headers}
        asked = self.headers.get("Range")
        if file.status != 200:
            self._send(file.status, b"", headers)
        elif asked and file.ranges:
            start, size = int(asked.removeprefix("bytes=").split("-")[0]), len(file.content)
            if start >= size:
                self._send(416, b"", {"Content-Range": f"bytes */{size}"})
            else:
                headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
                self._send(206, file.content[start:], headers, self._cut(file))
        else:
            self._send(200, file.content, headers, self._cut(file))

    def _cut(self, file: Served) -> int | None:
        return file.cuts.pop(0) if file.cuts and self.command == "GET" else None

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None, cut: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
