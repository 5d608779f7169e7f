"""How Triton kernels are launched, and on which devices they can be.

Knows nothing of the kernels. Importing it does not need triton; triton-ascend (NPU) and mainline Triton (CUDA) both
install the module ``triton``. With ``TRITON_INTERPRET=1`` kernels run in Triton's interpreter, on any device.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from contextlib import nullcontext
from typing import Any

import torch

from .products import COMPOSITION, choice
from .products.npu import product

logger = logging.getLogger(__name__)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # of the kernels' tensors; they compute in float32
# How many programs, where the device does not say (any number is correct): the vector cores of an Ascend 910B1.
VECTOR_CORES = 48
# Triton's interpreter runs one after the other: enough that one's rows end where another's begin.
INTERPRETED_PROGRAMS = 3
# Programs for each multiprocessor of a GPU: enough to hide the latency of a loop over rows.
PROGRAMS_PER_MULTIPROCESSOR = 8
_BACKENDS = {"npu": ("npu",), "cuda": ("cuda", "hip")}


def why_not_triton(step: str, device_type: str) -> str | None:
    """The reason why a step of the model cannot be a Triton kernel on this type of device here; None if it can."""
    if device_type == "npu":
        chosen = choice(step, product())
        if chosen.operator == COMPOSITION:
            return chosen.why
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (on an NPU: pip install triton-ascend)"
    return _why_not_driver(device_type)


@functools.cache
def _why_not_driver(device_type: str) -> str | None:
    import triton

    if _interpreted():
        return None
    if device_type not in _BACKENDS:
        return f"Triton has no compiler for {device_type}; TRITON_INTERPRET=1 runs its interpreter"
    try:
        backend = triton.runtime.driver.active.get_current_target().backend
    except Exception as error:  # whatever a vendor's driver raises; the caller reports it
        return f"Triton's driver does not start: {error}"
    return None if backend in _BACKENDS[device_type] else f"the installed triton compiles for {backend}"


def _interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, which has no driver."""
    import triton

    return not isinstance(triton.jit(_probe), triton.JITFunction)


def _probe() -> None:
    """A kernel that does nothing."""


@functools.cache
def log_composition(operator: str, device_type: str, reason: str) -> None:
    """Say once why an operator runs as a composition of torch calls on a device that has kernels."""
    logger.warning("%s on %s: composed of torch calls: %s", operator, device_type, reason)


@functools.cache
def programs(device: torch.device) -> int:
    """How many programs to start at most: one for each vector core, or enough to fill a GPU."""
    if _interpreted():
        return INTERPRETED_PROGRAMS
    if device.type == "cuda":
        return PROGRAMS_PER_MULTIPROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count
    if device.type == "npu":
        import triton

        properties = getattr(getattr(triton.runtime.driver.active, "utils", None), "get_device_properties", None)
        if properties is not None:
            return int(properties(device.index or 0)["num_vectorcore"])
    return VECTOR_CORES


def launch(kernel: Any, grid: int, device: torch.device, *arguments: object, **constants: object) -> None:
    """Start ``grid`` programs of a kernel on a device: the only place where one is started.

    Args:
        kernel: a function decorated with ``triton.jit``.
        grid: number of programs, at most 65,535; with 0 nothing is started.
        device: where the tensors are; made current, for it need not be.
        arguments: tensors and integers, in the order of the kernel's parameters.
        constants: its ``tl.constexpr`` parameters.
    """
    if grid == 0:
        return
    current = nullcontext() if device.type == "cpu" else torch.get_device_module(device).device(device)
    with current:
        kernel[(grid,)](*arguments, **constants)


def power_of_two_divisor(number: int, at_most: int) -> int:
    """The largest power of two, up to ``at_most``, that divides a positive number: tiles without padded rows."""
    return min(number & -number, at_most)
