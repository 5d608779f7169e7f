"""Put first on PYTHONPATH by ``python -m ascend_m1_hostnpu``: whoever imports torch_npu gets the host NPU below it.

Python runs this file at every start, so it imports nothing and only leaves a note for the import of torch_npu.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec, PathFinder

_HERE = os.path.dirname(os.path.abspath(__file__))


class HostNpuFinder:
    """Loads the stand-ins when torch_npu is looked for, and leaves it to those who find it."""

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name == "torch_npu":
            sys.meta_path.remove(cls)
            _load()
            from importlib.util import find_spec

            return find_spec(name)  # once more from the start: the stand-ins join in this import
        return None


def _load() -> None:
    parent = os.path.dirname(os.path.dirname(_HERE))
    if parent not in sys.path:
        sys.path.append(parent)
    # Where `import torch_npu` comes first, torch must not import it once more by itself.
    os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    import torch  # noqa: F401

    del os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"]
    import ascend_m1_hostnpu.loading  # noqa: F401  not the package alone, which may be half imported


def _next() -> None:
    """Run the sitecustomize that this one hides."""
    others = [folder for folder in sys.path if os.path.abspath(folder) != _HERE]
    spec = PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        from importlib.util import module_from_spec

        module = module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


sys.meta_path.insert(0, HostNpuFinder)
_next()
