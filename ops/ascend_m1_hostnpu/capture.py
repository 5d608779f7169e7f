"""Graphs: what is recorded between the begin and the end of a capture, its task groups and their updates."""

from __future__ import annotations

import ctypes
import itertools
from dataclasses import dataclass
from typing import Any

from . import queues
from .abi import say
from .queues import Graph, Task

_BAD_CAPTURE = 107030


@dataclass
class _Group:
    graph: Graph
    first: int
    last: int


_capturing: dict[int, Graph] = {}  # stream -> graph
_joined: dict[int, Graph] = {}  # event recorded inside a capture -> graph
_graphs: dict[int, Graph] = {}
_groups: dict[int, _Group] = {}
_updating: dict[int, tuple[_Group, list[Task]]] = {}
_handles = itertools.count(16, 16)


def is_capturing() -> bool:
    """Whether any stream of the process is."""
    return bool(_capturing)


def takes(stream: int, task: Task) -> bool:
    """Record a task if it is given inside a capture or an update; else it is to run."""
    if stream in _updating:
        _updating[stream][1].append(task)
    elif stream in _capturing:
        _capturing[stream].tasks.append(task)
    else:
        return False
    return True


def refuse_waiting() -> int:
    """CANN's code for a host that waits for a stream; 0 outside a capture."""
    if not _capturing:
        return 0
    say("the host waits for a stream during a capture: nothing may synchronize between begin and end")
    return _BAD_CAPTURE


def records(event: int, stream: int) -> bool:
    """Whether an event recorded on this stream belongs to a capture."""
    if stream in _capturing:
        _joined[event] = _capturing[stream]
        return True
    _joined.pop(event, None)
    return False


def joins(event: int, stream: int) -> bool:
    """Whether the event is of a capture; the stream that waits for it takes part from now on."""
    if event in _joined:
        _capturing.setdefault(stream, _joined[event])
    return event in _joined


def forget(event: int) -> None:
    """An event is no more."""
    _joined.pop(event, None)


def abandon() -> list[str]:
    """Forget whatever is unfinished; returns what it was."""
    left = [f"stream {stream:#x} is still capturing" for stream in _capturing]
    left += [f"stream {stream:#x} still updates a task group" for stream in _updating]
    for table in (_capturing, _joined, _updating):
        table.clear()
    return left


def begin(stream: int | None, mode: int) -> int:
    graph = Graph()
    _capturing[stream or 0] = graph
    _keep(_graphs, graph)
    return 0


def info(stream: int | None, status: int, model: int | None) -> int:
    graph = _capturing.get(stream or 0)
    ctypes.c_int.from_address(status).value = int(graph is not None)
    if model and graph is not None:
        ctypes.c_void_p.from_address(model).value = _id(graph)
    return 0


def end(stream: int | None, model: int) -> int:
    graph = _capturing.get(stream or 0)
    if graph is None:
        say("a capture ends that did not begin")
        return _BAD_CAPTURE
    for table in (_capturing, _joined):
        for key in [key for key, value in table.items() if value is graph]:
            del table[key]
    if graph.open_group is not None:  # what failed inside it left it open; the capture is over all the same
        say("a capture ends inside a task group")
        return _BAD_CAPTURE
    ctypes.c_void_p.from_address(model).value = _id(graph)
    return 0


def execute(model: int, stream: int | None) -> int:
    return queues.put(stream or 0, _graphs[model])


def destroy(model: int) -> int:
    graph = _graphs.pop(model, None)
    for key in [key for key, group in _groups.items() if group.graph is graph]:
        del _groups[key]
    return 0


def group_begin(stream: int | None) -> int:
    graph = _capturing.get(stream or 0)
    if graph is None:
        say("a task group begins outside a capture")
        return _BAD_CAPTURE
    graph.open_group = len(graph.tasks)
    return 0


def group_end(stream: int | None, handle: int) -> int:
    graph = _capturing.get(stream or 0)
    if graph is None or graph.open_group is None:
        say("a task group ends that did not begin")
        return _BAD_CAPTURE
    group = _Group(graph, graph.open_group, len(graph.tasks))
    graph.open_group = None
    ctypes.c_void_p.from_address(handle).value = _keep(_groups, group)
    return 0


def update_begin(stream: int | None, handle: int) -> int:
    _updating[stream or 0] = (_groups[handle], [])
    return 0


def update_end(stream: int | None) -> int:
    group, tasks = _updating.pop(stream or 0)
    old = group.graph.tasks[group.first : group.last]
    if [t.launch and t.launch.name for t in old] != [t.launch and t.launch.name for t in tasks]:
        say("an update gives a task group other operators than were captured")
        return _BAD_CAPTURE
    group.graph.tasks[group.first : group.last] = tasks
    return 0


def _keep(table: dict[int, Any], value: Any) -> int:
    key = next(_handles)
    table[key] = value
    return key


def _id(graph: Graph) -> int:
    return next(key for key, value in _graphs.items() if value is graph)
