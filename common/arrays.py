"""Arrays from `.npz` files that may be damaged or hostile: whole, or as a stream behind a header that is checked."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class ArrayStream(NamedTuple):
    """An array whose contents are still to be read: as many bytes as its shape and type say."""

    file: IO[bytes]
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran_order: bool


class NpzFile:
    """An `.npz`, open. Raises ValueError if it is none."""

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
        """What the arrays are called."""
        return [name.removesuffix(".npy") for name in self._archive.namelist() if name.endswith(".npy")]

    def stream(self, name: str) -> ArrayStream:
        """The array of that name, of which nothing has been read but the header.

        Raises:
            ValueError: no such array, a header that can't be read, objects, other contents than the header says.
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
        except Exception as error:  # Python's parser reads the header, and zipfile and zlib what is before it
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
        except Exception as error:  # of what is damaged behind the header, and no memory
            raise ValueError(f"cannot read {name} of {self.path}: {_reason(error)}; is the file whole?") from None


def _reason(error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return reason.split("\n", 1)[0][:120]
