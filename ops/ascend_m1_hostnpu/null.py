"""Null mode: every task returns at once, in C. What remains of a step's time is the host's cost above CANN."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .abi import OPAPI, OPERATOR_SYMBOLS, RUNTIME
from .collectives import OPERATIONS

# A replay and the calls around it, stream and event calls, collectives.
_RUNTIME = (
    "aclmdlRIExecuteAsync",
    "aclrtMemsetAsync",
    "aclrtRecordEvent",
    "aclrtStreamWaitEvent",
    "aclrtValueWait",
    "aclrtValueWrite",
    "aclrtSynchronizeStream",
    "aclrtSynchronizeStreamWithTimeout",
    "aclrtSynchronizeDevice",
    "aclrtSynchronizeDeviceWithTimeout",
    "aclrtSynchronizeEvent",
    "aclmdlRICaptureTaskUpdateBegin",
    "aclmdlRICaptureTaskUpdateEnd",
    *(symbol for symbol, _, _ in OPERATIONS),
)
_active = False


def is_active() -> bool:
    return _active


@contextmanager
def null_mode() -> Iterator[None]:
    """Inside the block nothing is computed or logged and results are garbage; copies still take place."""
    global _active
    nothing, copy = RUNTIME.address("hostnpu_nothing"), RUNTIME.address("hostnpu_copy")
    answers = [(RUNTIME.slot(name), nothing) for name in _RUNTIME]
    answers.append((RUNTIME.slot("aclrtMemcpyAsync"), copy))
    answers += [(OPAPI.slot(name), nothing) for name in OPERATOR_SYMBOLS]
    before, outer = [slot.value for slot, _ in answers], _active
    try:
        _active = True
        for slot, address in answers:
            slot.value = address
        yield
    finally:
        _active = outer
        for (slot, _), value in zip(answers, before, strict=True):
            slot.value = value
