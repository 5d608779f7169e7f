"""``launch`` in place of an NPU: lower the kernel, compile it for this machine, run it on guarded copies.

The operators' own launchers call it, so what is lowered is what they would start on an NPU.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from ascend_m1_ops.conv_rope_cache import npu as fused
from ascend_m1_ops.short_conv import npu as conv
from tests.lowering.host import GuardedMemory, Program, compile_for_host, in_child
from tests.lowering.toolchain import Lowered, lower

_TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int32: "i32", torch.int64: "i64"}


@dataclass(frozen=True)
class Launch:
    """What a launch needs of the compiler."""

    kernel: Any
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, int], ...]


@functools.cache
def lowered(launch: Launch) -> Lowered:
    """Its kernel, lowered."""
    return lower(launch.kernel, dict(launch.signature), dict(launch.constants))


@functools.cache
def _program(launch: Launch) -> Program:
    return compile_for_host(lowered(launch))


def describe(kernel: Any, arguments: tuple[Tensor | int, ...], constants: dict[str, int]) -> Launch:
    """A launch's types and constants."""
    kinds = [f"*{_TYPES[x.dtype]}" if isinstance(x, Tensor) else "i32" for x in arguments]
    signature = tuple(zip(kernel.arg_names, kinds, strict=False))
    return Launch(kernel, signature, tuple(constants.items()))


@contextmanager
def replaced_launch(launch: Callable[..., None], programs: int) -> Iterator[None]:
    """The launchers call ``launch`` and believe in so many vector cores."""
    with (
        mock.patch.multiple(fused, launch=launch, programs=lambda device: programs),
        mock.patch.multiple(conv, launch=launch, programs=lambda device: programs),
    ):
        yield


def recorded(call: Callable[[], object]) -> Launch:
    """The one launch that a call makes; nothing is run."""
    found: list[Launch] = []

    def record(kernel: Any, grid: int, device: torch.device, *arguments: Tensor | int, **constants: int) -> None:
        found.append(describe(kernel, arguments, constants))

    with replaced_launch(record, programs=48):
        call()
    (launch,) = found
    return launch


def executed(call: Callable[[], Any], programs: int, at_end: bool) -> Any:
    """Run a call whose launches go to the lowered kernels on this machine.

    Args:
        call: a launcher with its arguments.
        programs: vector cores to pretend.
        at_end: tensors lie against the guard page behind them, else against the one before them.
    """

    def launch(kernel: Any, grid: int, device: torch.device, *arguments: Tensor | int, **constants: int) -> None:
        if grid:
            _run_guarded(_program(describe(kernel, arguments, constants)), arguments, grid, at_end)

    with replaced_launch(launch, programs):
        return call()


def _run_guarded(program: Program, arguments: tuple[Tensor | int, ...], grid: int, at_end: bool) -> None:
    tensors = [x for x in arguments if isinstance(x, Tensor)]
    spans = [_span(x) for x in tensors]
    guards = [GuardedMemory(span.nbytes, at_end) for span in spans]
    for guard, span in zip(guards, spans, strict=True):
        guard.bytes()[:] = span
    sizes = [span.nbytes // x.element_size() for span, x in zip(spans, tensors, strict=True)]
    addresses, scalars = [guard.address for guard in guards], [x for x in arguments if not isinstance(x, Tensor)]
    in_child(lambda: program(addresses, sizes, scalars, grid))
    for x, guard, span in zip(tensors, guards, spans, strict=True):
        gaps = _gaps(x, span)
        assert (span[gaps] == guard.bytes()[gaps]).all(), "the kernel wrote between a tensor's rows"
        span[:] = guard.bytes()


def _span(x: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """All bytes from the first to the last element of a tensor, gaps included."""
    elements = 0 if x.numel() == 0 else 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    if not elements:
        return np.zeros(0, np.uint8)
    memory = (ctypes.c_uint8 * (elements * x.element_size())).from_address(x.data_ptr())
    return np.frombuffer(memory, np.uint8)


def _gaps(x: Tensor, span: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which bytes of the span belong to no element."""
    gaps = np.ones(span.shape, bool)
    if span.size:
        strides = [stride * x.element_size() for stride in x.stride()]
        np.lib.stride_tricks.as_strided(gaps, [*x.shape, x.element_size()], [*strides, 1])[...] = False
    return gaps
