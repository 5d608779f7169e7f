"""The C interface: loading the stand-in libraries, putting Python functions behind their symbols, reading C objects.

A signature is written as on the operator's page, one word for the type and one for the name:

    T tensor · T! tensor that is written · TL, TL! list of tensors · S scalar · SL list of scalars · IA int array ·
    BA bool array · FA float array · O an object as its address, unread · i64, i32, i8, f64, f32, b, s as in C
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import interrupts
from .build import ALIASES, OPERATORS, libraries

PTR, SIZE, INT, U32 = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int, ctypes.c_uint32
TYPES: dict[str, Any] = {
    **dict.fromkeys(("T", "TL", "S", "SL", "IA", "BA", "FA"), PTR),
    "O": ctypes.c_uint64,
    "i64": ctypes.c_int64,
    "i32": ctypes.c_int32,
    "i8": ctypes.c_int8,
    "f64": ctypes.c_double,
    "f32": ctypes.c_float,
    "b": ctypes.c_bool,
    "s": ctypes.c_char_p,
}
# aclDataType (acl/acl_base.h)
DTYPES = {
    0: torch.float32,
    1: torch.float16,
    2: torch.int8,
    3: torch.int32,
    4: torch.uint8,
    6: torch.int16,
    9: torch.int64,
    11: torch.float64,
    12: torch.bool,
    16: torch.complex64,
    27: torch.bfloat16,
}
_INTERNAL = 500000  # ACL_ERROR_INTERNAL_ERROR
_HEADER = ctypes.c_int64 * 6
_TENSOR, _SCALAR, _INTS, _BOOLS, _FLOATS, _TENSORS, _SCALARS = range(1, 8)
_kept: list[Any] = []  # callbacks must outlive the process's last call


@dataclass(frozen=True)
class Argument:
    """One parameter of an operator's C signature."""

    name: str
    type: str
    written: bool

    @property
    def is_object(self) -> bool:
        """Passed as a pointer to one of CANN's objects."""
        return TYPES[self.type] is PTR


def parse(signature: str) -> list[Argument]:
    """``"T x, f64 epsilon, T! y"`` -> arguments. A type without a name before it holds on: ``"T x, gamma"``."""
    arguments: list[Argument] = []
    kind = ""
    for part in signature.split(","):
        *words, name = part.split()
        kind = words[0] if words else kind
        arguments.append(Argument(name, kind.rstrip("!"), kind.endswith("!")))
    return arguments


class Library:
    """A loaded stand-in library whose jump slots can be pointed at Python or C functions."""

    def __init__(self, path: Path) -> None:
        self.handle = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)

    def slot(self, symbol: str) -> ctypes.c_void_p:
        return ctypes.c_void_p.in_dll(self.handle, f"slot_{symbol}")

    def has(self, symbol: str) -> bool:
        return hasattr(self.handle, f"slot_{symbol}")

    def answer(self, symbol: str, arguments: Sequence[Any], function: Callable[..., int | None]) -> None:
        """Let ``function`` answer the C symbol; it returns CANN's error code, None for success."""

        def call(*values: Any) -> int:
            try:
                code = function(*values) or 0
            except BaseException as error:  # C cannot pass it on
                code = _failed(symbol, error)
            return interrupts.repeat_after(code) if interrupts.pending else code  # nothing may follow

        interrupts.callbacks.add(call.__code__)
        callback = ctypes.CFUNCTYPE(INT, *arguments)(call)
        _kept.append(callback)
        self.slot(symbol).value = ctypes.cast(callback, PTR).value

    def address(self, symbol: str) -> int:
        value = ctypes.cast(getattr(self.handle, symbol), PTR).value
        assert value is not None
        return value


def _load() -> tuple[Library, Library, list[str]]:
    folder = libraries()
    runtime = Library(folder / "libascendcl.so")
    for name in ALIASES:
        ctypes.CDLL(str(folder / f"lib{name}.so"), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(folder / "libatb.so"), mode=ctypes.RTLD_GLOBAL)
    return runtime, Library(folder / "libopapi.so"), (folder / OPERATORS).read_text().split()


RUNTIME, OPAPI, OPERATOR_SYMBOLS = _load()


def say(message: str) -> None:
    """Put a message where torch_npu looks for the reason of a failure."""
    buffer = (ctypes.c_char * 8192).in_dll(RUNTIME.handle, "hostnpu_message")
    buffer.value = message.encode()[:8191]


def _failed(symbol: str, error: BaseException) -> int:
    """A stand-in broke: say so, also where nobody asks for the reason."""
    reason = f"{symbol}: {type(error).__name__}: {error}".splitlines()[0]
    say(reason)
    print(f"ascend_m1_hostnpu: {reason}", file=sys.stderr)
    return _INTERNAL


def said() -> str:
    """The last message."""
    message: bytes = (ctypes.c_char * 8192).in_dll(RUNTIME.handle, "hostnpu_message").value
    return message.decode(errors="replace")


def view(pointer: int, dtype: torch.dtype, sizes: Sequence[int], strides: Sequence[int], offset: int = 0) -> Tensor:
    """A CPU tensor on device memory."""
    if 0 in sizes:
        return torch.empty(tuple(sizes), dtype=dtype)
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    memory = (ctypes.c_char * ((last + 1) * dtype.itemsize)).from_address(pointer)
    return torch.frombuffer(memory, dtype=dtype).as_strided(tuple(sizes), tuple(strides), offset)


def read(pointer: int | None) -> Any:
    """The Python value of one of CANN's objects; None for a null pointer."""
    if not pointer:
        return None
    kind, code, count, offset, _format, data = _HEADER.from_address(pointer)
    values = (ctypes.c_int64 * (2 * count if kind == _TENSOR else count)).from_address(pointer + 48)
    if kind == _TENSOR:
        return view(data, _dtype(code), values[:count], values[count:], offset)
    if kind == _INTS:
        return list(values)
    if kind in (_TENSORS, _SCALARS):
        return [read(value) for value in values]
    if kind == _BOOLS:
        return [bool(b) for b in (ctypes.c_bool * count).from_address(pointer + 48)]
    if kind == _FLOATS:
        return list((ctypes.c_float * count).from_address(pointer + 48))
    return torch.frombuffer((ctypes.c_char * 16).from_address(pointer + 48), dtype=_dtype(code), count=1)[0].item()


def _dtype(code: int) -> torch.dtype:
    if code not in DTYPES:
        raise TypeError(f"aclDataType {code} has no counterpart in the host NPU")
    return DTYPES[code]


def set_sizes(pointer: int, sizes: Sequence[int]) -> None:
    """Give a tensor object the contiguous shape that its operator found, for aclGetViewShape to answer."""
    count = len(sizes)
    assert count == _HEADER.from_address(pointer)[2], "an output keeps its number of dimensions"
    values = (ctypes.c_int64 * (2 * count)).from_address(pointer + 48)
    values[:count] = list(sizes)
    stride = 1
    for i in reversed(range(count)):
        values[count + i] = stride
        stride *= sizes[i]
