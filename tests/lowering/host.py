"""A lowered kernel as native code of this machine, run on memory with guard pages round every tensor.

``bishengir-opt`` turns the linalg-level MLIR into LLVM, llvmlite compiles it. A read or write outside a tensor is a
segmentation fault, so it runs in a child process.
"""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import llvmlite.binding as llvmlite
import numpy as np
from numpy.typing import NDArray
from triton._C.libtriton import ir, llvm

from tests.lowering.toolchain import BIN, Lowered

_BUFFERIZE = (
    "allow-return-allocs-from-loops=true copy-before-write=false "
    "unknown-type-conversion=identity-layout-map function-boundary-type-conversion=identity-layout-map"
)
_PASSES = (
    "convert-elementwise-to-linalg", f"one-shot-bufferize={_BUFFERIZE}", "canonicalize", "cse",
    "convert-linalg-to-loops", "expand-strided-metadata", "lower-affine", "arith-expand=include-bf16=true",
    "memref-expand", "convert-scf-to-cf", "convert-math-to-llvm", "convert-math-to-libm", "convert-arith-to-llvm",
    "convert-index-to-llvm", "finalize-memref-to-llvm", "convert-func-to-llvm", "convert-cf-to-llvm",
    "reconcile-unrealized-casts",
)  # fmt: skip

Program = Callable[[Sequence[int], Sequence[int], Sequence[int], int], None]


class _MemRef(ctypes.Structure):
    """One-dimensional memref descriptor of MLIR's C interface."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("allocated", "aligned")] + [
        (name, ctypes.c_int64) for name in ("offset", "size", "stride")
    ]


class _UnrankedMemRef(ctypes.Structure):
    _fields_ = [("rank", ctypes.c_int64), ("descriptor", ctypes.POINTER(ctypes.c_int64))]


def _view(memref: _UnrankedMemRef, itemsize: int) -> NDArray[np.uint8] | None:
    """Bytes of a memref of any rank [*sizes, itemsize]; None if it is empty."""
    rank, fields = memref.rank, memref.descriptor
    sizes = [fields[3 + axis] for axis in range(rank)]
    strides = [fields[3 + rank + axis] * itemsize for axis in range(rank)]
    if 0 in sizes:
        return None
    span = sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True)) + itemsize
    memory = (ctypes.c_char * span).from_address(fields[1] + fields[2] * itemsize)
    flat = np.frombuffer(memory, np.uint8)
    return np.lib.stride_tricks.as_strided(flat, [*sizes, itemsize], [*strides, 1])


@ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.POINTER(_UnrankedMemRef), ctypes.POINTER(_UnrankedMemRef))
def _memref_copy(itemsize: int, source: object, target: object) -> None:
    """``memref.copy`` of MLIR's runtime library, which the compiled code calls for strided copies."""
    read, written = _view(source[0], itemsize), _view(target[0], itemsize)  # type: ignore[index]
    if read is not None and written is not None:
        written[...] = read


def compile_for_host(lowered: Lowered) -> Program:
    """The kernel as a function of (addresses, sizes in elements, scalars, programs) that runs the whole grid."""
    # Attributes of the NPU's dialects mean nothing here; the C interface is what ctypes can call.
    text = re.sub(r"attributes \{[^}]*\} \{", "attributes {llvm.emit_c_interface} {", lowered.text)
    text = re.sub(r" \{(tt|hivm)\.[^}]*\}", "", text)
    text = text.replace("gpu.barrier", "")  # within one program, which is one thread here
    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder, "source.mlir"), Path(folder, "llvm.mlir")
        source.write_text(text)
        passes = [f"--{name}" for name in _PASSES]
        subprocess.run(
            [BIN / "bishengir-opt", source, *passes, "-o", result], check=True, capture_output=True, text=True
        )
        context = ir.context()
        ir.load_dialects(context)
        module = llvm.to_module(ir.parse_mlir_module(str(result), context), llvm.context())
    llvmlite.initialize_native_target()
    llvmlite.initialize_native_asmprinter()
    llvmlite.add_symbol("memrefCopy", ctypes.cast(_memref_copy, ctypes.c_void_p).value)
    # With this processor's instructions: conversions of float16 would else call a library that is not there.
    features = llvmlite.get_host_cpu_features().flatten()
    machine = llvmlite.Target.from_default_triple().create_target_machine(features=features, opt=2)
    engine = llvmlite.create_mcjit_compiler(llvmlite.parse_assembly(str(module)), machine)
    engine.finalize_object()

    def run(addresses: Sequence[int], sizes: Sequence[int], scalars: Sequence[int], grid: int) -> None:
        unused = np.zeros(64, np.int8)  # the hidden leading buffers: a lock and a workspace
        hidden = [_MemRef(unused.ctypes.data, unused.ctypes.data, 0, 64, 1)] * 2
        memrefs = [*hidden, *(_MemRef(a, a, 0, n, 1) for a, n in zip(addresses, sizes, strict=True))]
        kinds = [ctypes.c_void_p] * len(memrefs) + [ctypes.c_int32] * (len(scalars) + 6)
        function = ctypes.CFUNCTYPE(None, *kinds)(engine.get_function_address(f"_mlir_ciface_{lowered.name}"))
        for program in range(grid):  # the hidden trailing scalars: the grid's three sizes, this program's three indices
            function(*map(ctypes.addressof, memrefs), *scalars, grid, 1, 1, program, 0, 0)

    return run


def in_child(work: Callable[[], None]) -> None:
    """Do the work in a forked process; shared memory is all that comes back.

    Raises:
        MemoryError: it died of a signal, as a touched guard page sends one.
    """
    child = os.fork()
    if not child:
        faulthandler.disable()  # the signal is expected, and reported below
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status < 0:
        raise MemoryError(f"the kernel touched memory outside its tensors (signal {-status})")
    if status:
        raise RuntimeError("the child process failed; its traceback is above")


class GuardedMemory:
    """Bytes between two pages that cannot be touched, against the one behind or the one before them."""

    def __init__(self, size: int, at_end: bool) -> None:
        page = mmap.PAGESIZE
        inner = max(1, -(-size // page)) * page
        self._map = mmap.mmap(-1, inner + 2 * page)  # shared with a child
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        for guard in (base, base + page + inner):
            if ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(guard), page, 0):
                raise OSError(ctypes.get_errno(), "mprotect failed")
        self.address = base + page + (inner - size if at_end else 0)
        self._size = size

    def bytes(self) -> NDArray[np.uint8]:
        """Its content, writable."""
        return np.frombuffer((ctypes.c_uint8 * self._size).from_address(self.address), np.uint8)
