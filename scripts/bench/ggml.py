"""ggml's products with Q4_0 weights, from the libraries that llama-cpp-python brings: the ones to beat on a CPU.

Q4_0 is what it has nearest to a weight of int4 with bfloat16 scales: 4 bits, a float16 scale for 32 numbers. It rounds
the rows to 8 bits, too, and multiplies whole numbers. The weight is repacked for the processor where ggml can.
"""

from __future__ import annotations

import ctypes as c
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

_F32, _Q4_0 = 0, 2  # enum ggml_type
_BLOCK, _BLOCK_BYTES = 32, 18  # of Q4_0
_P, _INT, _I64, _SIZE = c.c_void_p, c.c_int, c.c_int64, c.c_size_t


class _Init(c.Structure):
    _fields_ = [("memory", _SIZE), ("buffer", _P), ("no_alloc", c.c_bool)]


_SIGNATURES: dict[str, tuple[Any, ...]] = {  # result, arguments
    "ggml_init": (_P, _Init),
    "ggml_new_tensor_2d": (_P, _P, _INT, _I64, _I64),
    "ggml_mul_mat": (_P, _P, _P, _P),
    "ggml_new_graph": (_P, _P),
    "ggml_build_forward_expand": (None, _P, _P),
    "ggml_backend_cpu_init": (_P,),
    "ggml_backend_cpu_set_n_threads": (None, _P, _INT),
    "ggml_backend_cpu_reg": (_P,),
    "ggml_backend_reg_get_proc_address": (_P, _P, c.c_char_p),
    "ggml_backend_reg_dev_get": (_P, _P, _SIZE),
    "ggml_backend_alloc_ctx_tensors_from_buft": (_P, _P, _P),
    "ggml_backend_cpu_buffer_type": (_P,),
    "ggml_backend_tensor_set": (None, _P, _P, _SIZE, _SIZE),
    "ggml_backend_tensor_get": (None, _P, _P, _SIZE, _SIZE),
    "ggml_quantize_chunk": (_SIZE, _INT, _P, _P, _I64, _I64, _I64, _P),
    "ggml_backend_graph_compute": (_INT, _P, _P),
}


class Ggml:
    """The library, with a CPU back end of ``torch``'s count of threads.

    Raises:
        SystemExit: llama-cpp-python is not installed.
    """

    def __init__(self) -> None:
        package = find_spec("llama_cpp")
        if package is None or package.origin is None:
            raise SystemExit("error: --ggml: llama-cpp-python is not installed: pip install llama-cpp-python")
        folder = Path(package.origin).parent / "lib"
        libraries = [c.CDLL(str(folder / f"lib{name}.so"), mode=c.RTLD_GLOBAL) for name in ("ggml-base", "ggml-cpu")]
        self.call: dict[str, Callable[..., Any]] = {}
        for name, (result, *arguments) in _SIGNATURES.items():
            function = next(getattr(library, name) for library in reversed(libraries) if hasattr(library, name))
            function.restype, function.argtypes = result, arguments
            self.call[name] = function
        self.backend = self.call["ggml_backend_cpu_init"]()
        self.call["ggml_backend_cpu_set_n_threads"](self.backend, torch.get_num_threads())

    def weight(self, values: torch.Tensor) -> Any:
        """A weight float32 [out, in] as Q4_0, repacked."""
        outputs, inputs = values.shape
        tensor, _ = self._tensor(_Q4_0, inputs, outputs, self._repacking())
        rounded = torch.empty(values.numel() // _BLOCK * _BLOCK_BYTES, dtype=torch.uint8)
        quantize = self.call["ggml_quantize_chunk"]
        quantize(_Q4_0, values.data_ptr(), rounded.data_ptr(), 0, outputs, inputs, None)
        self.call["ggml_backend_tensor_set"](tensor, rounded.data_ptr(), 0, rounded.nbytes)
        return tensor

    def product(self, weight: Any, x: torch.Tensor, outputs: int) -> tuple[Callable[[], object], Callable[..., Any]]:
        """A call that multiplies x float32 [rows, in] and the weight, and one that gives the result [rows, out]."""
        rows, inputs = x.shape
        buffer = self.call["ggml_backend_cpu_buffer_type"]()
        context = self._context()
        source = self.call["ggml_new_tensor_2d"](context, _F32, inputs, rows)
        result = self.call["ggml_mul_mat"](context, weight, source)
        graph = self.call["ggml_new_graph"](context)
        self.call["ggml_build_forward_expand"](graph, result)
        self.call["ggml_backend_alloc_ctx_tensors_from_buft"](context, buffer)
        self.call["ggml_backend_tensor_set"](source, x.data_ptr(), 0, x.nbytes)

        def read() -> torch.Tensor:
            out = torch.empty(rows, outputs)
            self.call["ggml_backend_tensor_get"](result, out.data_ptr(), 0, out.nbytes)
            return out

        return lambda: self.call["ggml_backend_graph_compute"](self.backend, graph), read

    def _context(self) -> Any:
        return self.call["ggml_init"](_Init(2**22, None, True))

    def _tensor(self, kind: int, inputs: int, outputs: int, buffer: Any) -> tuple[Any, Any]:
        context = self._context()
        tensor = self.call["ggml_new_tensor_2d"](context, kind, inputs, outputs)
        if not self.call["ggml_backend_alloc_ctx_tensors_from_buft"](context, buffer):
            raise SystemExit("error: ggml cannot allocate a weight: free some memory")
        return tensor, context

    def _repacking(self) -> Any:
        """The kind of buffer that repacks weights; ggml's usual one where the processor has no such."""
        registry = self.call["ggml_backend_cpu_reg"]()
        address = self.call["ggml_backend_reg_get_proc_address"](registry, b"ggml_backend_dev_get_extra_bufts")
        extra = c.CFUNCTYPE(c.POINTER(_P), _P)(address)(self.call["ggml_backend_reg_dev_get"](registry, 0))
        return extra[0] or self.call["ggml_backend_cpu_buffer_type"]()
