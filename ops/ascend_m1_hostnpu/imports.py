"""Joining in a module's first import, so that what is never imported costs nothing."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

Execute = Callable[[ModuleType], None]


def after_import(name: str, function: Execute) -> None:
    """Call ``function(module)`` once the module has been imported; at once if it has been."""

    def then_call(execute: Execute, module: ModuleType) -> None:
        execute(module)
        function(module)

    if name in sys.modules:
        function(sys.modules[name])
    else:
        sys.meta_path.insert(0, _Watcher(name, then_call))


def print_to_stderr(name: str) -> None:
    """Let what a module prints while it is imported go to stderr: stdout is the program's."""

    def redirected(execute: Execute, module: ModuleType) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            execute(module)

    sys.meta_path.insert(0, _Watcher(name, redirected))


class _Watcher(MetaPathFinder):
    """Finds one module the usual way and has it executed by ``execute_by(its loader's way, module)``."""

    def __init__(self, name: str, execute_by: Callable[[Execute, ModuleType], None]) -> None:
        self.name, self.execute_by = name, execute_by

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module
            spec.loader.exec_module = lambda module: self.execute_by(execute, module)  # type: ignore[method-assign]
        return spec
