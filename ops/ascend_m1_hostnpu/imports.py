"""Calling a function right after a module's first import, so that what is never imported costs nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


def after_import(name: str, function: Callable[[ModuleType], None]) -> None:
    """Call ``function(module)`` once the module has been imported; at once if it has been."""
    if name in sys.modules:
        function(sys.modules[name])
    else:
        sys.meta_path.insert(0, _Watcher(name, function))


class _Watcher(MetaPathFinder):
    """Finds one module the usual way and lengthens its execution by the function."""

    def __init__(self, name: str, function: Callable[[ModuleType], None]) -> None:
        self.name, self.function = name, function

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_call(module: ModuleType) -> None:
                execute(module)
                self.function(module)

            spec.loader.exec_module = execute_and_call  # type: ignore[method-assign]
        return spec
