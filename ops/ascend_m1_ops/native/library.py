"""Builds the sources beside it and finds their functions. Built once for each user and source."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import mmap
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FOLDER = Path(__file__).parent
FLAGS = (
    *("-O3", "-march=x86-64-v4", "-mavx512bf16", "-ffp-contract=off"),
    *("-std=c++17", "-fopenmp", "-shared", "-fPIC", "-w"),
)
TILE_FLAGS = ("-mamx-tile", "-mamx-bf16")
ROW_BLOCK, INPUT_BLOCK = 16, 8  # outputs and inputs that a weight has a multiple of
TILE_INPUTS = 32  # of those, what ``fastest`` wants
# Arguments and result of each function, in ctypes' words: addresses, sizes, a factor, threads.
_POINTER, _LONG, _FLOAT, _INT = ctypes.c_void_p, ctypes.c_long, ctypes.c_float, ctypes.c_int
_Declarations = dict[str, tuple[list[Any], Any]]
_PRODUCTS: _Declarations = {
    "bfloat16_linear": (3 * [_POINTER] + 3 * [_LONG] + [_INT], None),
    "int4_linear": (4 * [_POINTER] + 4 * [_LONG] + [_INT], None),
}
_STEP: _Declarations = {
    "rms_norm": (5 * [_POINTER] + 2 * [_LONG] + [_FLOAT, _INT], None),
    "swiglu": (2 * [_POINTER] + 2 * [_LONG] + [_INT], None),
    "conv_rope_cache": (13 * [_POINTER] + 9 * [_LONG], _LONG),
    "paged_attention": (6 * [_POINTER] + 8 * [_LONG] + [_FLOAT, _INT], None),
}
_log = logging.getLogger(__name__)


def supported() -> bool:
    """Whether the processor has the instructions."""
    return platform.machine() in ("x86_64", "AMD64") and bool(torch.cpu._is_avx512_bf16_supported())


@cache
def available() -> bool:
    """Whether there is a library; where the processor would have it and nothing else, the log says why."""
    if not supported():
        return False
    try:
        library()
    except (RuntimeError, OSError) as reason:
        _log.warning("no operators compiled for this processor: %s", reason)
        return False
    return True


@cache
def library() -> ctypes.CDLL:
    """Products and what lies between them. Raises RuntimeError or OSError with the reason why there is none."""
    if not supported():
        raise RuntimeError("the processor has no AVX512-BF16")
    return _declared(ctypes.CDLL(str(_build(("linear.cpp", "step.cpp"), FLAGS))), _PRODUCTS | _STEP)


@cache
def fastest() -> ctypes.CDLL:
    """The products by AMX where processor, system and compiler have it; for inputs in multiples of 32."""
    plain = library()
    if not torch.cpu._is_amx_tile_supported():
        return plain
    try:
        loaded = ctypes.CDLL(str(_build(("tiles.cpp",), (*FLAGS, *TILE_FLAGS))))
    except (RuntimeError, OSError) as reason:
        _log.warning("products without AMX: %s", reason)
        return plain
    if not loaded.allow_tiles():
        _log.warning("products without AMX: processor or system do not let this process use tiles")
        return plain
    return _declared(loaded, _PRODUCTS)


def uses_tiles() -> bool:
    """Whether ``fastest`` has AMX."""
    return fastest() is not library()


def _declared(loaded: ctypes.CDLL, functions: _Declarations) -> ctypes.CDLL:
    for name, (arguments, result) in functions.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = arguments, result
    return loaded


def in_large_pages(view: Tensor) -> Tensor:
    """A contiguous copy of a weight, in large pages where there are such: fewer ends for reading ahead to stop at."""
    copy = torch.empty(view.shape, dtype=view.dtype, device=view.device)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        start = -(-copy.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        length = copy.data_ptr() + copy.nbytes - start
        if length > 0:  # a hint: whether it was taken does not matter
            ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_HUGEPAGE)
    return copy.copy_(view)


def _compiler() -> list[str]:
    """Its command, to which arguments may belong."""
    named, found = os.environ.get("CXX"), shutil.which("g++") or shutil.which("clang++")
    if not named:
        if found is None:
            raise RuntimeError("no C++ compiler found: install g++, or name one in CXX")
        return [found]
    try:
        command = shlex.split(named)
    except ValueError as error:
        raise RuntimeError(f"CXX={named}: {error}: correct it, or unset it") from None
    if not command or shutil.which(command[0]) is None:
        raise RuntimeError(f"CXX={named}: there is no such compiler: name another, or unset it")
    return command


def _build(sources: tuple[str, ...], flags: tuple[str, ...]) -> Path:
    compiler, files = _compiler(), [FOLDER / source for source in sources]
    read = b"".join(file.read_bytes() for file in (*files, FOLDER / "vectors.h"))
    key = hashlib.sha256(read + repr((compiler, flags)).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ascend-m1" / "native"
    built = folder / f"{files[0].stem}-{key}.so"
    if not built.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            made = Path(work) / "made.so"
            _log.info("compiling %s, once", " and ".join(sources))
            command = [*compiler, *flags, "-o", str(made), *map(str, files)]
            result = subprocess.run(command, capture_output=True, text=True, errors="replace")
            if result.returncode:
                reason = (result.stderr.strip() or "?").splitlines()[0]
                raise RuntimeError(f"{shlex.join(compiler)} could not build it: {reason}")
            made.rename(built)
    return built
