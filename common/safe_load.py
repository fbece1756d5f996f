"""Loads weights from files that may be damaged or hostile, into a model that they must fit exactly."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor


class ModelCheckpointName:
    """Stands in for a PyTorch Lightning class that old checkpoints name and nothing here needs."""


HARMLESS: list[Any] = [(ModelCheckpointName, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")]


def read_checkpoint(path: str | Path, remedy: str = "download it again") -> Any:
    """The content of a .safetensors or `torch.save` file, on the CPU. No code that the file names is run.

    Args:
        path: a name that ends in .safetensors is read as such, any other as a pickle of tensors and plain containers.
        remedy: advice for the error message of an unreadable file.

    Raises:
        ValueError: a missing, empty or truncated file, not a checkpoint, or one that asks to run code, naming it.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a directory; give a checkpoint file")
    try:
        size = path.stat().st_size
        if not size:
            raise ValueError(f"{path} is empty; {remedy}")
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(HARMLESS):
            _refuse_code(path)
            with warnings.catch_warnings(action="ignore"):  # torch's about odd files; the error says what matters
                return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}; check the path") from None
    except PermissionError:
        raise ValueError(f"no permission to read {path}; change its permissions") from None
    except pickle.UnpicklingError as error:
        if wanted := [name for name in re.findall(r"GLOBAL (\S+)", str(error)) if _names(path, name)]:
            raise _wants_to_run(path, wanted) from None
        raise _unreadable(path, size, error, remedy) from error
    except ValueError as error:
        if str(error).startswith(str(path)):
            raise
        raise _unreadable(path, size, error, remedy) from error
    except Exception as error:  # readers of damaged files raise almost anything
        raise _unreadable(path, size, error, remedy) from error


def is_state_dict(content: Any) -> bool:
    """Whether this is a dictionary of named tensors, and not an empty one."""
    return (
        isinstance(content, dict)
        and len(content) > 0
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())
    )


def shapes_of(cls: Any, config: Mapping[str, Any]) -> dict[str, torch.Size]:
    """Name and shape of every weight of the model `cls(**config)`, without allocating it."""
    with torch.device("meta"):
        return {name: weight.shape for name, weight in cls(**config).state_dict().items()}


def check_shapes(state: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], source: str | Path) -> None:
    """Raises ValueError naming the first three weights that are missing, of another shape, or unexpected."""
    wrong = []
    for name, shape in shapes.items():
        if name not in state:
            wrong.append(f"{name} is missing")
        elif state[name].shape != shape:
            wrong.append(f"{name} is {tuple(state[name].shape)} instead of {tuple(shape)}")
    raise_on_mismatch(wrong + [f"{name} is not expected" for name in state if name not in shapes], source)


def raise_on_mismatch(differences: list[str], source: str | Path) -> None:
    """Raises ValueError with the first three, if there are any."""
    if differences:
        more = f"; and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise ValueError(
            f"{source} has another architecture: {'; '.join(differences[:3])}{more}; "
            "give a checkpoint and a configuration that belong together"
        )


def build(cls: Any, config: Mapping[str, Any], state: Mapping[str, Tensor], dtype: torch.dtype) -> Any:
    """The model `cls(**config)` in evaluation mode with these weights, copied only if their dtype changes."""
    with torch.device("meta"):
        model = cls(**config)
    model.load_state_dict({name: weight.to(dtype) for name, weight in state.items()}, assign=True)
    return model.eval()


def _refuse_code(path: Path) -> None:
    """Rejects a file in today's format by the code it names; one in the format before 2020 is rejected on loading."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return
    if wanted := torch.serialization.get_unsafe_globals_in_checkpoint(path):
        raise _wants_to_run(path, wanted)


def _names(path: Path, name: str) -> bool:
    """Whether a pickle has this name in full, rather than cut off in the middle."""
    pattern = b"c" + b"[.\n]".join(re.escape(part.encode()) for part in name.split(".")) + b"\n"
    return re.search(pattern, path.read_bytes()) is not None


def _wants_to_run(path: Path, wanted: list[str]) -> ValueError:
    names = ", ".join(sorted(set(wanted))[:3])
    return ValueError(
        f"{path} was not opened: it asks to run code, namely {names}; get the weights from a source you trust"
    )


def _unreadable(path: Path, size: int, error: Exception, remedy: str) -> ValueError:
    message = str(error) or type(error).__name__
    inner = re.search(r"WeightsUnpickler error:\s*(.+)", message)  # torch wraps it in advice to turn the safety off
    reason = (inner[1] if inner else message.strip().split("\n")[0])[:120]
    return ValueError(f"{path} ({size:,} bytes) is truncated or not a checkpoint ({reason}); {remedy}")
