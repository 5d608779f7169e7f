"""The runtime's stream, event, copy and graph calls; the order of what runs is ``queues.py``, graphs ``capture.py``.

A task runs as soon as everything before it on its stream has run, which is at once, unless a wait for a value in
memory (torch_npu's ExternalEvent) stands before it, or for an event of a stream that waits. During a capture tasks are
recorded instead; a replay puts them on the stream. Updating a task group replaces recorded tasks, also those of a
replay that still waits.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from . import capture, queues
from .abi import INT, PTR, RUNTIME, SIZE, U32
from .capture import is_capturing
from .launches import Launch
from .queues import Mark, Task

__all__ = ["abandon", "install", "is_capturing", "submit"]

# aclrtValueWait's flag: how the value in memory is compared with the given one.
_COMPARE: dict[int, Callable[[int, int], bool]] = {
    0: lambda memory, value: memory >= value,
    1: lambda memory, value: memory == value,
    2: lambda memory, value: bool(memory & value),
    3: lambda memory, value: bool(~(memory | value)),
}
_marks: dict[int, Mark] = {}  # event -> where it was recorded last; none: nothing was before it, or all of it has run


def submit(stream: int | None, run: Callable[[], object], launch: Launch) -> int:
    """Give a stream something to do. Returns CANN's error code."""
    return _give(stream or 0, Task(run, launch))


def abandon() -> list[str]:
    """Forget whatever is unfinished; returns what it was."""
    _marks.clear()
    return capture.abandon() + queues.abandon()


def _give(stream: int, task: Task) -> int:
    return 0 if capture.takes(stream, task) else queues.put(stream, task)


def _copy(target: int, room: int, source: int, size: int, kind: int, stream: int | None) -> int:
    to_host, from_host = kind in (0, 2), kind in (0, 1)  # aclrtMemcpyKind
    launch = Launch("memcpy", 0 if from_host else size, 0 if to_host else size)
    return submit(stream, lambda: ctypes.memmove(target, source, size) and None, launch)


def _fill(target: int, room: int, value: int, size: int, stream: int | None) -> int:
    return submit(stream, lambda: ctypes.memset(target, value, size) and None, Launch("memset", 0, size))


def _record(event: int, stream: int | None) -> int:
    _marks.pop(event, None)
    if not capture.records(event, stream or 0) and queues.is_busy(stream or 0):
        _marks[event] = queues.record(stream or 0)
    return 0


def _wait(stream: int | None, event: int) -> int:
    """What was given before the event runs first; of an event inside a capture the stream takes part in it."""
    if capture.joins(event, stream or 0) or _is_done(event):
        return 0
    mark = _marks[event]
    return queues.put(stream or 0, Task(lambda: None, ready=lambda: mark.done))


def _is_done(event: int) -> bool:
    return event not in _marks or _marks[event].done


def _value_wait(address: int, value: int, flag: int, stream: int | None) -> int:
    memory = ctypes.c_uint64.from_address(address)
    return _give(stream or 0, Task(lambda: None, ready=lambda: _COMPARE[flag](memory.value, value)))


def _value_write(address: int, value: int, flag: int, stream: int | None) -> int:
    memory = ctypes.c_uint64.from_address(address)
    return _give(stream or 0, Task(lambda: setattr(memory, "value", value)))


def _finish(*streams: int) -> int:
    return capture.refuse_waiting() or queues.finish(*streams)


def _finish_event(event: int) -> int:
    streams = [] if _is_done(event) else queues.holding(_marks[event])
    return capture.refuse_waiting() or (queues.finish(*streams) if streams else 0)


def _forget_event(event: int | None) -> int:
    _marks.pop(event or 0, None)
    capture.forget(event or 0)
    return 0


def _forget_stream(stream: int | None) -> int:
    queues.forget(stream or 0)
    return 0


def _write_int(address: int, value: bool) -> int:
    ctypes.c_int.from_address(address).value = int(value)
    return 0


def install() -> None:
    """Answer the runtime's calls."""
    answers: list[tuple[str, list[Any], Callable[..., int]]] = [
        ("aclrtMemcpyAsync", [PTR, SIZE, PTR, SIZE, INT, PTR], _copy),
        ("aclrtMemsetAsync", [PTR, SIZE, INT, SIZE, PTR], _fill),
        ("aclrtRecordEvent", [PTR, PTR], _record),
        ("aclrtStreamWaitEvent", [PTR, PTR], _wait),
        ("aclrtValueWait", [PTR, SIZE, U32, PTR], _value_wait),
        ("aclrtValueWrite", [PTR, SIZE, U32, PTR], _value_write),
        ("aclrtSynchronizeEvent", [PTR], _finish_event),
        ("aclrtSynchronizeStream", [PTR], lambda stream: _finish(stream or 0)),
        ("aclrtSynchronizeStreamWithTimeout", [PTR, INT], lambda stream, ms: _finish(stream or 0)),
        ("aclrtSynchronizeDevice", [], _finish),
        ("aclrtSynchronizeDeviceWithTimeout", [INT], lambda ms: _finish()),
        # ACL_STREAM_STATUS_NOT_READY, ACL_EVENT_RECORDED_STATUS_COMPLETE and ACL_EVENT_WAIT_STATUS_NOT_READY are 1.
        ("aclrtStreamQuery", [PTR, PTR], lambda stream, out: _write_int(out, queues.is_busy(stream or 0))),
        ("aclrtQueryEventStatus", [PTR, PTR], lambda event, out: _write_int(out, _is_done(event))),
        ("aclrtQueryEventWaitStatus", [PTR, PTR], lambda event, out: _write_int(out, not _is_done(event))),
        ("aclrtDestroyEvent", [PTR], _forget_event),
        ("aclrtDestroyStream", [PTR], _forget_stream),
        ("aclrtDestroyStreamForce", [PTR], _forget_stream),
        ("aclmdlRICaptureBegin", [PTR, INT], capture.begin),
        ("aclmdlRICaptureGetInfo", [PTR, PTR, PTR], capture.info),
        ("aclmdlRICaptureEnd", [PTR, PTR], capture.end),
        ("aclmdlRIExecuteAsync", [PTR, PTR], capture.execute),
        ("aclmdlRIDestroy", [PTR], capture.destroy),
        ("aclmdlRICaptureTaskGrpBegin", [PTR], capture.group_begin),
        ("aclmdlRICaptureTaskGrpEnd", [PTR, PTR], capture.group_end),
        ("aclmdlRICaptureTaskUpdateBegin", [PTR, PTR], capture.update_begin),
        ("aclmdlRICaptureTaskUpdateEnd", [PTR], capture.update_end),
    ]
    for symbol, arguments, function in answers:
        RUNTIME.answer(symbol, arguments, function)
