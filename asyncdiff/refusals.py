"""What a U-Net in parts can't be given."""

from __future__ import annotations

from typing import Any


def refuse(others: dict[str, Any]) -> None:
    """Raises ValueError for an argument of the fork's forward, if given, that the parts do not take."""
    for name, value in others.items():
        if value is None or value is False or name == "return_dict":
            continue
        if name in ("cache_branch_id", "cached_feature", "keep_branch_id", "cached_attention", "keep_attention"):
            raise ValueError(
                "AsyncDiff can't be combined with DeepCache: in a retrieve step the processes of the deep layers would "
                "have nothing to do; leave out the cache's arguments"
            )
        raise ValueError(f"{name} is not supported by a U-Net in parts; call the pipeline without AsyncDiff")
