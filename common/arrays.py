"""Arrays from `.npz` files that may be damaged or hostile: whole, or as a stream behind a header that is checked."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class ArrayStream(NamedTuple):
    """An array whose contents have not been read yet; shape and dtype give the number of bytes."""

    file: IO[bytes]
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran_order: bool


class NpzFile:
    """An open `.npz`. Raises ValueError if the file is not one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._archive = zipfile.ZipFile(path)
        except Exception as error:  # a damaged directory makes zipfile raise more than BadZipFile
            raise ValueError(f"cannot read {path}: {_reason(error)}; is it whole, and an .npz?") from None

    def __enter__(self) -> NpzFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.close()

    def names(self) -> list[str]:
        """Names of the arrays."""
        return [name.removesuffix(".npy") for name in self._archive.namelist() if name.endswith(".npy")]

    def stream(self, name: str) -> ArrayStream:
        """The array of that name; only its header has been read.

        Raises:
            ValueError: no such array, an unreadable header, an object array, or contents that don't match the header.
        """
        if name not in self.names():
            raise ValueError(f"{self.path} holds {', '.join(self.names()) or 'no arrays'}, not {name}")
        try:
            info = self._archive.getinfo(f"{name}.npy")
            file = self._archive.open(info)
            version = np.lib.format.read_magic(file)
            if version not in HEADERS:
                raise ValueError(f"its header is of version {version}")
            shape, fortran_order, dtype = HEADERS[version](file)
        except Exception as error:  # Python's parser reads the header, zipfile and zlib what precedes it
            raise ValueError(f"cannot read {name} of {self.path}: {_reason(error)}; is the file whole?") from None
        if dtype.hasobject:
            raise ValueError(f"{name} of {self.path} holds Python objects, which could run code; save numbers or text")
        held = info.file_size - file.tell()
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != held:
            says = f"{dtype} {shape}"[:80]
            raise ValueError(f"{name} of {self.path} is {says} by its header, but {held} bytes; is the file whole?")
        return ArrayStream(file, shape, dtype, fortran_order)

    def read(self, name: str) -> np.ndarray:
        """The whole array of that name. Raises as `stream`."""
        self.stream(name).file.close()
        try:
            with self._archive.open(f"{name}.npy") as file:
                return np.lib.format.read_array(file, allow_pickle=False)
        except Exception as error:  # damage behind the header, or out of memory
            raise ValueError(f"cannot read {name} of {self.path}: {_reason(error)}; is the file whole?") from None


def _reason(error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return reason.split("\n", 1)[0][:120]
