"""What `import DeepCache` is in a checkout: the plug-in and the forks, as `pip install .` installs them from unets/.

`DeepCache.ldm` and the like are the modules of unets/ themselves, so that there is one class of each name.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType
from typing import TYPE_CHECKING, Any

import unets
from unets import __all__ as __all__

if TYPE_CHECKING:
    from unets import *  # noqa: F403

__path__: list[str] = []  # it has submodules, of no folder of its own


class _ModulesOfUnets(MetaPathFinder, Loader):
    """Finds DeepCache.x as unets.x."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return spec_from_loader(name, self) if name.startswith(f"{__name__}.") else None

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        sys.modules[name] = importlib.import_module(
            "unets" + name.removeprefix(__name__)
        )  # import goes by what is there


sys.meta_path.insert(0, _ModulesOfUnets())


def __getattr__(name: str) -> Any:
    return getattr(unets, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
