"""openMind learns Baichuan-M1 by the installation of this package; it has no plugins, so an import hook does it.

Python runs this module at its start, in openMind's child processes, too (``ascend_m1_openmind.pth``, which the wheel
puts beside the packages). It waits for openMind's table of models and adds to it; elsewhere nothing happens. openMind
lives with transformers 4 and an older torch, so nothing here imports the other packages of this distribution.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

GROUP = "baichuan_m1"
_AWAITED = "openmind.flow.model.model_registry"


class _Registry(Loader):
    """Loads openMind's table as its own loader does, then adds to it, unless it knows the model itself.

    An openMind that does not take it, being newer than the one that this was tried with, goes on without.
    """

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        if GROUP in getattr(module, "SUPPORTED_MODEL_GROUPS", ()):
            return
        try:
            from .register import register

            register()
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            print(f"ascend-m1: openMind is not told of {GROUP} ({error}): use openmind 1.0.0", file=sys.stderr)


class _Finder(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _AWAITED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Registry(spec.loader)
        return spec


def install() -> None:
    """Wait for openMind, once in a process."""
    if _AWAITED not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


install()
