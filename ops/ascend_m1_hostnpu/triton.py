"""Triton kernels on npu tensors: Triton's own interpreter works on the device's memory, and a launch is one task.

Outside a capture a kernel runs at once; inside, it is recorded and runs at replay. Triton is prepared when it is first
imported, and must not have been imported before. What a launch moves is every tensor argument once, counted as read,
unless the kernel says more: ``kernel.traffic = lambda arguments: (read, written)``, with the bound arguments by name.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import null, streams
from .abi import said, view
from .imports import after_import
from .launches import Launch
from .operator import nbytes

_INTERPRETER = "triton.runtime.interpreter"


def install() -> None:
    """Make Triton interpret its kernels, on npu tensors too; costs nothing until Triton is imported."""
    if importlib.util.find_spec("triton") is None:
        return
    os.environ["TRITON_INTERPRET"] = "1"
    after_import(_INTERPRETER, _prepare)


def _prepare(interpreter: ModuleType) -> None:
    kernel_class, executor = interpreter.InterpretedFunction, interpreter.GridExecutor
    plain = kernel_class.run

    @functools.wraps(plain)
    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        tensors = [t for t in _tensors([*args, *kwargs.values()], interpreter) if t.device.type == "npu"]
        if warmup or not tensors:
            return plain(kernel, *args, grid=grid, warmup=warmup, **kwargs)
        if null.is_active():
            return None
        return _launch(kernel, args, kwargs, grid, tensors, interpreter, executor)

    kernel_class.run = run
    _round_bfloat16(interpreter)
    _patch_language_once(interpreter)


def _patch_language_once(interpreter: Any) -> None:
    """For each helper once in a launch; the interpreter looks through the language at every call of one."""
    plain_call, plain_patch = interpreter.GridExecutor.__call__, interpreter._patch_lang
    patched: set[Any] = set()

    @functools.wraps(plain_call)
    def call(task: Any, *args: Any, **kwargs: Any) -> Any:
        patched.clear()
        return plain_call(task, *args, **kwargs)

    @functools.wraps(plain_patch)
    def patch(function: Any) -> Any:
        if function in patched:
            return None
        patched.add(function)
        return plain_patch(function)

    interpreter.GridExecutor.__call__, interpreter._patch_lang = call, patch


def _round_bfloat16(interpreter: Any) -> None:
    """float32 to bfloat16 to nearest even, as hardware rounds; the interpreter cuts off."""
    plain, tl = interpreter._convert_float, interpreter.tl
    nearest = (None, interpreter._ir.ROUNDING_MODE.RTNE)

    @functools.wraps(plain)
    def convert(values: Any, source: Any, target: Any, mode: Any) -> Any:
        if (source, target) != (tl.float32, tl.bfloat16) or mode not in nearest:
            return plain(values, source, target, mode)
        return torch.tensor(values).to(torch.bfloat16).view(torch.uint16).numpy()

    interpreter._convert_float = convert


def _launch(
    kernel: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    grid: Any,
    tensors: list[Tensor],
    interpreter: ModuleType,
    executor: Callable[..., Any],
) -> None:
    known = {key: value for key, value in kwargs.items() if key in kernel.arg_names}  # without num_warps and the like
    traffic = getattr(kernel, "traffic", None) or getattr(kernel.fn, "traffic", None)
    if traffic is None:
        unique = {(tensor.data_ptr(), tensor.shape, tensor.stride()): tensor for tensor in tensors}
        read, written = sum(nbytes(tensor) for tensor in unique.values()), 0
    else:
        bound = inspect.signature(kernel.fn).bind(*args, **known)
        bound.apply_defaults()
        read, written = traffic(bound.arguments)
    views = [_on_host(value, interpreter) for value in args]
    named = {key: _on_host(value, interpreter) for key, value in known.items()}
    task = executor(kernel.rewrite(), kernel.arg_names, grid, kernel.pre_run_hooks)
    task._init_args_hst = lambda args, kwargs: (args, kwargs)  # it would copy whole storages there and back
    task._restore_args_dev = lambda *unused: None
    name = f"triton:{kernel.fn.__name__}"
    stream = torch.npu.current_stream().npu_stream  # type: ignore[attr-defined]
    if streams.submit(stream, lambda: task(*views, **named), Launch(name, read, written)):
        raise RuntimeError(said())


def _tensors(values: Sequence[Any], interpreter: ModuleType) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, tuple):
            yield from _tensors(value, interpreter)
        elif isinstance(value, interpreter.TensorDescriptor):
            yield from _tensors([value.base], interpreter)
        elif hasattr(value, "data_ptr"):
            yield interpreter._unwrap_tensor(value)


def _on_host(value: Any, interpreter: ModuleType) -> Any:
    """A launch's argument with CPU views of the same memory in place of npu tensors."""
    if isinstance(value, tuple):
        return interpreter._tuple_create(value, (_on_host(item, interpreter) for item in value))
    if isinstance(value, interpreter.TensorDescriptor):
        base = _on_host(value.base, interpreter)
        shape = (value.shape, value.strides, value.block_shape, value.padding, value.round_f32_to_tf32)
        return interpreter.TensorDescriptor(base, *shape)
    if not hasattr(value, "data_ptr"):
        return value
    tensor = interpreter._unwrap_tensor(value)
    if tensor.device.type != "npu":
        return value
    host = view(tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
    return interpreter._rewrap_tensor(host, original_tensor=value)
