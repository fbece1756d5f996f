"""Text and JSON from files that may be damaged: the content, or a one-line error with the file and the remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NAMES: dict[Any, str] = {dict: "an object", list: "a list"}


def read_text(path: Path, remedy: str = "check the path") -> str:
    """Text in UTF-8, without the byte-order mark that some editors put first.

    Raises:
        ValueError: a missing or unreadable file, or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}; {remedy}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 (byte {error.start}); {remedy}") from None
    except (OSError, ValueError) as error:  # an impossible file name raises ValueError
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"cannot read {path}: {reason}; {remedy}") from None


def read_json(path: Path, *kinds: Any, remedy: str = "check the path") -> Any:
    """The content of a JSON file.

    Args:
        kinds: `dict`, `list` or both, if nothing else is accepted.
        remedy: advice for the error message.

    Raises:
        ValueError: a missing file, not JSON, or not of these kinds.
    """
    text = read_text(path, remedy)
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply to be read; {remedy}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); {remedy}") from None
    if kinds and not isinstance(content, kinds):
        raise ValueError(f"{path} is not {' or '.join(NAMES[kind] for kind in kinds)}; {remedy}")
    return content
