"""Streams, events and graphs: in what order tasks run.

A stream is a queue. A task runs as soon as everything before it on its stream has run, which is at once, unless a wait
for a value in memory (torch_npu's ExternalEvent) stands before it. During a capture tasks are recorded instead; a
replay puts them on the stream. Updating a task group replaces recorded tasks, also those of a replay that still waits.
"""

from __future__ import annotations

import ctypes
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from . import launches
from .abi import INT, PTR, RUNTIME, SIZE, U32, say
from .launches import Launch

_FAILED, _BLOCKED, _BAD_CAPTURE, _WAITS = 507018, 507046, 107030, -1
# aclrtValueWait's flag: how the value in memory is compared with the given one.
_COMPARE: dict[int, Callable[[int, int], bool]] = {
    0: lambda memory, value: memory >= value,
    1: lambda memory, value: memory == value,
    2: lambda memory, value: bool(memory & value),
    3: lambda memory, value: bool(~(memory | value)),
}


@dataclass
class Task:
    """What a stream holds: something to run with its log entry (None: not a launch), once ``ready``."""

    run: Callable[[], object]
    launch: Launch | None = None
    ready: Callable[[], bool] | None = None


@dataclass
class Graph:
    """Recorded tasks of all streams that took part, in the order in which they were given."""

    tasks: list[Task] = field(default_factory=list)
    open_group: int | None = None
    position: int = 0  # of a replay that waits


@dataclass
class _Group:
    graph: Graph
    first: int
    last: int


_queues: dict[int, deque[Task | Graph]] = {}
_capturing: dict[int, Graph] = {}  # stream -> graph
_joined: dict[int, Graph] = {}  # event recorded inside a capture -> graph
_graphs: dict[int, Graph] = {}
_groups: dict[int, _Group] = {}
_updating: dict[int, tuple[_Group, list[Task]]] = {}
_handles = itertools.count(16, 16)


def submit(stream: int | None, run: Callable[[], object], launch: Launch) -> int:
    """Give a stream something to do. Returns CANN's error code."""
    return _give(stream or 0, Task(run, launch))


def is_capturing() -> bool:
    return bool(_capturing)


def abandon() -> list[str]:
    """Forget whatever is unfinished; returns what it was."""
    left = [f"stream {stream:#x} is still capturing" for stream in _capturing]
    left += [f"stream {stream:#x} still updates a task group" for stream in _updating]
    left += [f"stream {stream:#x} has {len(queue)} tasks that wait" for stream, queue in _queues.items() if queue]
    for table in (_capturing, _joined, _updating, _queues):
        table.clear()
    return left


def _give(stream: int, task: Task) -> int:
    if stream in _updating:
        _updating[stream][1].append(task)
        return 0
    if stream in _capturing:
        _capturing[stream].tasks.append(task)
        return 0
    queue = _queues.setdefault(stream, deque())
    queue.append(task)
    return _drain(stream)


def _drain(stream: int) -> int:
    """Run what can be run."""
    queue = _queues[stream]
    while queue:
        head = queue[0]
        code = _replay(head) if isinstance(head, Graph) else _do(head, captured=False)
        if code == _WAITS:
            return 0
        queue.popleft()
        if code:
            queue.clear()
            return code
    return 0


def _replay(graph: Graph) -> int:
    while graph.position < len(graph.tasks):
        code = _do(graph.tasks[graph.position], captured=True)
        if code == _WAITS:
            return code
        graph.position += 1
        if code:
            break
    else:
        code = 0
    graph.position = 0
    return code


def _do(task: Task, captured: bool) -> int:
    if task.ready is not None and not task.ready():
        return _WAITS
    try:
        task.run()
    except Exception as error:  # C cannot pass it on; torch_npu raises it again with this text
        say(f"{task.launch.name if task.launch else 'task'}: {error}")
        return _FAILED
    if task.launch is not None:
        launches.record(replace(task.launch, captured=True) if captured else task.launch)
    return 0


def _finish(*streams: int) -> int:
    """Synchronize: whatever still waits would wait for ever."""
    if _capturing:
        say("the host waits for a stream during a capture: nothing may synchronize between begin and end")
        return _BAD_CAPTURE
    for stream in streams:
        if _queues.get(stream):
            say(
                "a stream waits for a value that nothing writes (a replay without its update): on the device this hangs"
            )
            _queues[stream].clear()
            return _BLOCKED
    return 0


def _handle(table: dict[int, Any], value: Any) -> int:
    key = next(_handles)
    table[key] = value
    return key


def _copy(target: int, room: int, source: int, size: int, kind: int, stream: int | None) -> int:
    to_host, from_host = kind in (0, 2), kind in (0, 1)  # aclrtMemcpyKind
    launch = Launch("memcpy", 0 if from_host else size, 0 if to_host else size)
    return submit(stream, lambda: ctypes.memmove(target, source, size) and None, launch)


def _fill(target: int, room: int, value: int, size: int, stream: int | None) -> int:
    return submit(stream, lambda: ctypes.memset(target, value, size) and None, Launch("memset", 0, size))


def _record(event: int, stream: int | None) -> int:
    graph = _capturing.get(stream or 0)
    if graph is not None:
        _joined[event] = graph
    return 0


def _wait(stream: int | None, event: int) -> int:
    """What was given before the event has run; inside a capture the stream takes part in it from now on."""
    if event in _joined:
        _capturing.setdefault(stream or 0, _joined[event])
    return 0


def _value_wait(address: int, value: int, flag: int, stream: int | None) -> int:
    memory = ctypes.c_uint64.from_address(address)
    return _give(stream or 0, Task(lambda: None, ready=lambda: _COMPARE[flag](memory.value, value)))


def _value_write(address: int, value: int, flag: int, stream: int | None) -> int:
    memory = ctypes.c_uint64.from_address(address)
    code = _give(stream or 0, Task(lambda: setattr(memory, "value", value)))
    for waiting in [key for key, queue in _queues.items() if queue and key != (stream or 0)]:
        code = code or _drain(waiting)
    return code


def _begin(stream: int | None, mode: int) -> int:
    graph = Graph()
    _capturing[stream or 0] = graph
    _handle(_graphs, graph)
    return 0


def _info(stream: int | None, status: int, model: int | None) -> int:
    graph = _capturing.get(stream or 0)
    ctypes.c_int.from_address(status).value = int(graph is not None)
    if model and graph is not None:
        ctypes.c_void_p.from_address(model).value = _id(graph)
    return 0


def _id(graph: Graph) -> int:
    return next(key for key, value in _graphs.items() if value is graph)


def _end(stream: int | None, model: int) -> int:
    graph = _capturing.get(stream or 0)
    if graph is None or graph.open_group is not None:
        say("a capture ends that did not begin, or inside a task group")
        return _BAD_CAPTURE
    for table in (_capturing, _joined):
        for key in [key for key, value in table.items() if value is graph]:
            del table[key]
    ctypes.c_void_p.from_address(model).value = _id(graph)
    return 0


def _execute(model: int, stream: int | None) -> int:
    _queues.setdefault(stream or 0, deque()).append(_graphs[model])
    return _drain(stream or 0)


def _group_begin(stream: int | None) -> int:
    graph = _capturing.get(stream or 0)
    if graph is None:
        say("a task group begins outside a capture")
        return _BAD_CAPTURE
    graph.open_group = len(graph.tasks)
    return 0


def _group_end(stream: int | None, handle: int) -> int:
    graph = _capturing.get(stream or 0)
    if graph is None or graph.open_group is None:
        say("a task group ends that did not begin")
        return _BAD_CAPTURE
    group = _Group(graph, graph.open_group, len(graph.tasks))
    graph.open_group = None
    ctypes.c_void_p.from_address(handle).value = _handle(_groups, group)
    return 0


def _update_begin(stream: int | None, handle: int) -> int:
    _updating[stream or 0] = (_groups[handle], [])
    return 0


def _update_end(stream: int | None) -> int:
    group, tasks = _updating.pop(stream or 0)
    old = group.graph.tasks[group.first : group.last]
    if [t.launch and t.launch.name for t in old] != [t.launch and t.launch.name for t in tasks]:
        say("an update gives a task group other operators than were captured")
        return _BAD_CAPTURE
    group.graph.tasks[group.first : group.last] = tasks
    return 0


def _destroy(model: int) -> int:
    graph = _graphs.pop(model, None)
    for key in [key for key, group in _groups.items() if group.graph is graph]:
        del _groups[key]
    return 0


def _forget(handle: int | None) -> int:
    _joined.pop(handle or 0, None)
    _queues.pop(handle or 0, None)
    return 0


def _write_int(address: int, value: int) -> int:
    ctypes.c_int.from_address(address).value = value
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
        ("aclrtSynchronizeEvent", [PTR], lambda event: _finish(*_queues)),
        ("aclrtSynchronizeStream", [PTR], lambda stream: _finish(stream or 0)),
        ("aclrtSynchronizeStreamWithTimeout", [PTR, INT], lambda stream, ms: _finish(stream or 0)),
        ("aclrtSynchronizeDevice", [], lambda: _finish(*_queues)),
        ("aclrtSynchronizeDeviceWithTimeout", [INT], lambda ms: _finish(*_queues)),
        ("aclrtStreamQuery", [PTR, PTR], lambda stream, out: _write_int(out, int(bool(_queues.get(stream or 0))))),
        ("aclrtQueryEventStatus", [PTR, PTR], lambda event, out: _write_int(out, 1)),
        ("aclrtQueryEventWaitStatus", [PTR, PTR], lambda event, out: _write_int(out, 0)),
        ("aclrtDestroyEvent", [PTR], _forget),
        ("aclrtDestroyStream", [PTR], _forget),
        ("aclrtDestroyStreamForce", [PTR], _forget),
        ("aclmdlRICaptureBegin", [PTR, INT], _begin),
        ("aclmdlRICaptureGetInfo", [PTR, PTR, PTR], _info),
        ("aclmdlRICaptureEnd", [PTR, PTR], _end),
        ("aclmdlRIExecuteAsync", [PTR, PTR], _execute),
        ("aclmdlRIDestroy", [PTR], _destroy),
        ("aclmdlRICaptureTaskGrpBegin", [PTR], _group_begin),
        ("aclmdlRICaptureTaskGrpEnd", [PTR, PTR], _group_end),
        ("aclmdlRICaptureTaskUpdateBegin", [PTR, PTR], _update_begin),
        ("aclmdlRICaptureTaskUpdateEnd", [PTR], _update_end),
    ]
    for symbol, arguments, function in answers:
        RUNTIME.answer(symbol, arguments, function)
