"""The authors' package `DeepCache`, although here that name may be this repository's."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from pathlib import Path
from typing import Any

INSTALL = "pip install DeepCache==0.1.1"


def original_package() -> Any:
    """The package, from its installed files.

    Raises:
        ImportError: it is not installed.
    """
    name = "original_deepcache"
    if name in sys.modules:
        return sys.modules[name]
    for distribution in importlib.metadata.distributions(name="DeepCache"):
        file = Path(str(distribution.locate_file("DeepCache/__init__.py")))
        if file.is_file():
            spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=[str(file.parent)])
            assert spec is not None and spec.loader is not None
            sys.modules[name] = module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    raise ImportError(f"the package DeepCache is not installed ({INSTALL})")
