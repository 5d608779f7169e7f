"""How an operator gets its stand-in: one decorator that knows the C side of a call, so that the function need not."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from . import streams
from .abi import OPAPI, OPERATOR_SYMBOLS, PTR, SIZE, TYPES, Argument, parse, read, say
from .launches import Launch
from .products import product

_REFUSED, _MISSING = 161002, 161001  # aclnn: invalid parameter; not supported
# Most pages say it for the Atlas inference series, the host code of most others refuses it.
_NO_BFLOAT16 = "the operator's page or host code in ops-math and ops-nn, Atlas inference series"
_MOVES_BFLOAT16 = ("InplaceCopy",)  # its page lists bfloat16 for every product
Compute = Callable[..., None]
Traffic = Callable[..., tuple[int, int]]

names: set[str] = set()  # of operators that have a stand-in
_executors: dict[int, tuple[Compute, list[Any], Launch]] = {}
_ids = itertools.count(16, 16)


class RuleError(ValueError):
    """An argument breaks a documented rule of an operator."""


def need(condition: bool, argument: str, rule: str, page: str) -> None:
    """Raise unless a documented rule holds; ``page`` is where it is documented."""
    if not condition:
        raise RuleError(f"{argument}: {rule} ({page})")


def aclnn(
    name: str, signature: str, *, rules: Callable[..., None] | None = None, traffic: Traffic | None = None
) -> Callable[[Compute], Compute]:
    """Decorator: the function computes aclnn<name> on CPU views of the device's memory, outputs written in place.

    Args:
        name: without the prefix ``aclnn``.
        signature: of its GetWorkspaceSize call, in order, see ``abi``; the trailing workspace and executor left out.
        rules: called first with the same arguments; raises RuleError where the documentation forbids the call.
        traffic: bytes read and written where that is not simply every tensor once.
    """
    arguments = parse(signature)

    def register(compute: Compute) -> Compute:
        def prepare(*raw: Any) -> int:
            try:
                values = [_value(a, v) for a, v in zip(arguments, raw, strict=False)]
                if rules is not None:
                    rules(*values)
                if name not in _MOVES_BFLOAT16:
                    _check_bfloat16(arguments, values)
                launch = Launch(f"aclnn{name}", *(traffic or _every_tensor(arguments))(*values))
            except Exception as error:  # C cannot pass it on; torch_npu raises it again with this text
                say(f"aclnn{name}: {error}")
                return _REFUSED
            key = next(_ids)
            _executors[key] = (compute, values, launch)
            ctypes.c_uint64.from_address(raw[-2]).value = 0
            ctypes.c_void_p.from_address(raw[-1]).value = key
            return 0

        types = [TYPES[a.type] for a in arguments]
        OPAPI.answer(f"aclnn{name}GetWorkspaceSize", [*types, PTR, PTR], prepare)
        if OPAPI.has(f"aclnn{name}GetMaxWorkspaceSize"):
            OPAPI.answer(f"aclnn{name}GetMaxWorkspaceSize", [*types, PTR, PTR], prepare)
        OPAPI.answer(f"aclnn{name}", [PTR, SIZE, PTR, PTR], _run)
        names.add(name)
        return compute

    return register


def _check_bfloat16(arguments: list[Argument], values: list[Any]) -> None:
    """Without a rule of its own an operator takes no bfloat16 on the Atlas inference series."""
    for argument, value in zip(arguments, values, strict=True):
        found = any(tensor.dtype == torch.bfloat16 for tensor in _tensors(value))
        need(not found or product() != "310P", argument.name, "is not bfloat16 on 310P", _NO_BFLOAT16)


def _run(workspace: int, size: int, executor: int, stream: int | None) -> int:
    compute, values, launch = _executors.pop(executor)
    return streams.submit(stream, lambda: compute(*values), launch)


def _value(argument: Argument, raw: Any) -> Any:
    if argument.is_object:
        return read(raw)
    return raw.decode() if argument.type == "s" and raw is not None else raw


def _every_tensor(arguments: list[Argument]) -> Traffic:
    def count(*values: Any) -> tuple[int, int]:
        read_bytes = written_bytes = 0
        for argument, value in zip(arguments, values, strict=True):
            size = sum(nbytes(tensor) for tensor in _tensors(value))
            written_bytes += size if argument.written else 0
            read_bytes += 0 if argument.written else size
        return read_bytes, written_bytes

    return count


def _tensors(value: Any) -> Iterator[Tensor]:
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, Tensor):
            yield item


def nbytes(tensor: Tensor | None) -> int:
    """Bytes that a launch touches of a tensor: an expanded dimension is read once."""
    if tensor is None or tensor.numel() == 0:
        return 0
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else 1
    return count * tensor.dtype.itemsize


def refuse_the_rest() -> None:
    """Operators without a stand-in fail with their name."""
    for symbol in OPERATOR_SYMBOLS:
        if OPAPI.slot(symbol).value is None:
            OPAPI.answer(symbol, [], _missing(symbol))


def _missing(symbol: str) -> Callable[[], int]:
    def fail() -> int:
        name = symbol.removesuffix("GetWorkspaceSize")
        say(f"{name}: the host NPU has no stand-in for this operator; docs/hostnpu.md says how to add one")
        return _MISSING

    return fail
