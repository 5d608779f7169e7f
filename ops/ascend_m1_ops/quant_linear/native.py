"""Builds and calls ``int4.cpp``: bfloat16 rows times int4 weights on x86-64 processors with AVX512-BF16.

Torch's own packed product multiplies in float32. Compiled on first use, once for each user and source; without a
compiler torch's product is used.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("int4.cpp")
FLAGS = ("-O3", "-march=x86-64-v4", "-mavx512bf16", "-fopenmp", "-shared", "-fPIC", "-w")
_ROW_BLOCK = 16  # outputs
_log = logging.getLogger(__name__)
_library = torch.library.Library("ascend_m1", "FRAGMENT")
_library.define("int4_linear(Tensor x, Tensor numbers, Tensor scales) -> Tensor")


@cache
def available() -> bool:
    """Whether products can be computed here; logs the reason if not."""
    try:
        _function()
    except (RuntimeError, OSError) as reason:
        _log.warning("int4 products are torch's: %s", reason)
        return False
    return True


def layout(numbers: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [out, in] and bfloat16 [out, groups] -> int16 [out / 16, in / 8, 32] and [out / 16, groups, 16]."""
    outputs, inputs = numbers.shape
    nibbles = (numbers + 8).view(outputs // _ROW_BLOCK, _ROW_BLOCK, inputs // 8, 4, 2).to(torch.int16)
    words = nibbles[..., 0, :].clone()
    for place in (1, 2, 3):
        words |= nibbles[..., place, :] << (4 * place)
    return words.transpose(1, 2).flatten(2).contiguous(), scales.unflatten(0, (-1, _ROW_BLOCK)).mT.contiguous()


def forward(x: Tensor, numbers: Tensor, scales: Tensor) -> Tensor:
    """x bfloat16 [T, in], the others as ``layout`` makes them -> [T, out]."""
    out: Tensor = torch.ops.ascend_m1.int4_linear(x, numbers, scales)
    return out


def _check(x: Tensor, numbers: Tensor, scales: Tensor) -> None:
    """What follows goes by addresses."""
    inputs, dtypes = numbers.shape[1] * 8, (x.dtype, numbers.dtype, scales.dtype)
    if x.dim() != 2 or x.shape[1] != inputs:
        raise ValueError(f"int4_linear: x must be [rows, {inputs}], not {list(x.shape)}")
    if dtypes != (torch.bfloat16, torch.int16, torch.bfloat16):
        raise ValueError(f"int4_linear: x, numbers and scales must be bfloat16, int16 and bfloat16, not {dtypes}")


def _forward(x: Tensor, numbers: Tensor, scales: Tensor) -> Tensor:
    _check(x, numbers, scales)
    x = x.contiguous()
    (rows, inputs), outputs = x.shape, numbers.shape[0] * _ROW_BLOCK
    y = x.new_empty(rows, outputs)
    pointers = (tensor.data_ptr() for tensor in (x, numbers, scales, y))
    _function()(*pointers, rows, inputs, outputs, inputs // scales.shape[1], torch.get_num_threads())
    return y


def _forward_fake(x: Tensor, numbers: Tensor, scales: Tensor) -> Tensor:
    _check(x, numbers, scales)
    return x.new_empty(x.shape[0], numbers.shape[0] * _ROW_BLOCK)


_library.impl("int4_linear", _forward, "CPU")
torch.library.register_fake("ascend_m1::int4_linear", _forward_fake, lib=_library)


@cache
def _function() -> ctypes._NamedFuncPointer:
    """Raises RuntimeError or OSError with the reason why there is none."""
    if platform.machine() not in ("x86_64", "AMD64") or not torch.cpu._is_avx512_bf16_supported():
        raise RuntimeError("the processor has no AVX512-BF16")
    function = ctypes.CDLL(str(_build())).int4_linear
    function.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_long] * 4 + [ctypes.c_int]
    function.restype = None
    return function


def _build() -> Path:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise RuntimeError("no C++ compiler found: install g++, or name one in CXX")
    key = hashlib.sha256(SOURCE.read_bytes() + repr((compiler, FLAGS)).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ascend-m1" / "int4"
    library = folder / f"int4-{key}.so"
    if not library.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            made = Path(work) / "int4.so"
            command = [compiler, *FLAGS, "-o", str(made), str(SOURCE)]
            result = subprocess.run(command, capture_output=True, text=True)
            if result.returncode:
                raise RuntimeError(f"{compiler} could not build it: {(result.stderr.strip() or '?').splitlines()[0]}")
            made.rename(library)
    return library
