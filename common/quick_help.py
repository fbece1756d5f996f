"""`--help` at once, though commands import torch and diffusers, which take seconds.

The option parsers don't use these libraries, and a call with `--help` ends in the parser. So if the command line
has `-h` or `--help`, stand-ins are imported in their place: classes that can be subclassed, called and
used as decorators, and that compute nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

SLOW = (
    "accelerate", "diffusers", "huggingface_hub", "imageio", "imageio_ffmpeg", "matplotlib", "open_clip", "pooch",
    "requests", "safetensors", "scipy", "tomesd", "torch", "torchmetrics", "torchvision", "transformers",
)  # fmt: skip


def is_asked_for(argv: Sequence[str]) -> bool:
    """Whether this command line asks for help; what follows `--` is not an option."""
    options = argv[: argv.index("--")] if "--" in argv else argv
    return "-h" in options or "--help" in options


def install() -> None:
    """From now on, imports of `SLOW` give stand-ins."""
    sys.meta_path.insert(0, _Finder())


class _StandIn(type):
    """The metaclass of stand-ins; each is a separate class, so that a class can have several as bases."""

    def __getattr__(cls, name: str) -> Any:
        return _stand_in(name, cls.__module__)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """As a decorator, returns what it decorates."""
        decorates = len(args) == 1 and callable(args[0]) and not kwargs
        return args[0] if decorates else _stand_in(cls.__name__, cls.__module__)

    def __getitem__(cls, _: Any) -> Any:
        return cls


def _stand_in(name: str, module: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return _StandIn(name, (), {"__module__": module})


class _Module(ModuleType):
    def __getattr__(self, name: str) -> Any:
        return _stand_in(name, self.__name__)


class _Finder(MetaPathFinder, Loader):
    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if fullname.partition(".")[0] in SLOW else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass
