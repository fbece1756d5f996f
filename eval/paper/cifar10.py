"""CIFAR-10's training images, from the archive that its authors publish."""

from __future__ import annotations

import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

BATCHES = [f"cifar-10-batches-py/data_batch_{k}" for k in range(1, 6)]
NEEDED = {("_reconstruct", "multiarray"), ("ndarray", "numpy"), ("dtype", "numpy"), ("encode", "_codecs")}


class Arrays(pickle.Unpickler):
    """Reads arrays in plain containers; refuses a file that names anything else, so that no code is run."""

    def find_class(self, module: str, name: str) -> Any:
        if (name, module.rsplit(".", 1)[-1]) not in NEEDED:
            raise ValueError(f"it asks to run code, namely {module}.{name}")
        return super().find_class(module, name)


def write_images(archive: Path, path: Path) -> None:
    """Writes an `.npz` whose `arr_0` has the images of all batches, uint8 (N, 32, 32, 3).

    Raises:
        ValueError, KeyError, EOFError, tarfile.TarError: the archive holds something else.
    """
    images = []
    with tarfile.open(archive) as members:
        for name in BATCHES:
            if (file := members.extractfile(name)) is None:
                raise ValueError(f"{name} is no file")
            try:
                data = Arrays(file, encoding="latin1").load()["data"]  # latin1: arrays that Python 2 wrote
            except (pickle.UnpicklingError, TypeError) as error:
                raise ValueError(f"{name}: {error}") from None
            images.append(np.asarray(data, np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    np.savez(path, arr_0=np.concatenate(images))
