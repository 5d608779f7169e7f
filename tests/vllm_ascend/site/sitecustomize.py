"""Every Python of this suite: vLLM's models import torchvision, whose wheel for x86-64 needs CUDA's libraries.

Without them its operators are not declared, and its import fails for that alone; no test calls one.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec

_kept: list[object] = []  # a library's declarations end with it


class DeclareOperators:
    """Finds nothing: it declares the operators when torchvision is looked for, and leaves."""

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name == "torchvision":
            sys.meta_path.remove(cls)
            import torch

            library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                library.define(f"{operator}(Tensor a) -> Tensor")
            _kept.append(library)
        return None


sys.meta_path.insert(0, DeclareOperators)
