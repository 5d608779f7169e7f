"""What a program finds where triton-ascend is installed: an active driver for npu that knows the device's cores.

Kernels run in Triton's interpreter all the same. triton-ascend's own additions to the language have no stand-in.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

from .imports import after_import
from .products import product

_CORES = {"num_aicore": 24, "num_vectorcore": 48}  # of the runtime's stand-in, whatever the product
_ADDITIONS = ("extract_slice", "get_element", "insert_slice")


def _properties(device: Any) -> dict[str, int]:
    return dict(_CORES)


def install() -> None:
    """Add the driver when Triton's list of back ends is made."""
    if importlib.util.find_spec("triton") is not None:
        after_import("triton.backends", _add_driver)
        after_import("triton.language", _name_additions)


def _add_driver(module: Any) -> None:
    base: Any = module.DriverBase

    class Driver(base):
        utils = SimpleNamespace(get_device_properties=_properties)

        @classmethod
        def is_active(cls) -> bool:
            return True

        def get_current_target(self) -> Any:
            from triton.backends.compiler import GPUTarget

            return GPUTarget("npu", product(), 0)

        def get_current_device(self) -> int:
            import torch

            return int(torch.npu.current_device())  # type: ignore[attr-defined]

        def get_current_stream(self, device: int) -> int:
            import torch

            return int(torch.npu.current_stream(device).npu_stream)  # type: ignore[attr-defined]

        def get_device_interface(self) -> ModuleType:
            import torch

            return torch.npu  # type: ignore[attr-defined, no-any-return]

        def get_active_torch_device(self) -> Any:
            import torch

            return torch.device("npu", self.get_current_device())

        def map_python_to_cpp_type(self, ty: str) -> str:
            raise NotImplementedError("the host NPU compiles no kernel")

        def get_benchmarker(self) -> Callable[..., Any]:
            raise NotImplementedError("the host NPU measures no time")

    module.backends["npu"] = module.Backend(None, Driver)


def _name_additions(module: ModuleType) -> None:
    """Programs look them up when they are imported, long before a kernel may use one."""
    for name in _ADDITIONS:
        if not hasattr(module, name):
            setattr(module, name, _missing(name))


def _missing(name: str) -> Callable[..., None]:
    def fail(*args: object, **kwargs: object) -> None:
        raise NotImplementedError(f"{name}: the host NPU has no stand-in for this addition of triton-ascend")

    return fail
