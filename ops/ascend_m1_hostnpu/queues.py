"""What streams hold, and in what order it runs.

A stream is a queue. A task runs as soon as everything before it on its stream has run and it is ready itself; a stream
whose first task is not ready waits, and is looked at again whenever something has run elsewhere. One task runs at a
time in a process, whichever thread gave it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from . import launches
from .abi import say
from .launches import Launch

_FAILED, _BLOCKED, _WAITS = 507018, 507046, -1


@dataclass
class Mark:
    """A place in a stream that an event was recorded at; ``done`` once the stream has come to it."""

    done: bool = False


@dataclass
class Task:
    """What a stream holds: something to run with its log entry (None: not a launch), once ``ready``."""

    run: Callable[[], object]
    launch: Launch | None = None
    ready: Callable[[], bool] | None = None
    mark: Mark | None = None


@dataclass
class Graph:
    """Recorded tasks of all streams that took part, in the order in which they were given."""

    tasks: list[Task] = field(default_factory=list)
    open_group: int | None = None
    position: int = 0  # of a replay that waits


_queues: dict[int, deque[Task | Graph]] = {}
_lock = threading.RLock()
_running = False


def put(stream: int, item: Task | Graph) -> int:
    """Give a stream something to do, and run what can be run. Returns CANN's code of the first error."""
    with _lock:
        _queues.setdefault(stream, deque()).append(item)
        return _advance(stream)


def record(stream: int) -> Mark:
    """The place that a stream has been given work up to."""
    mark = Mark()
    if not is_busy(stream):
        mark.done = True
    else:
        put(stream, Task(lambda: None, mark=mark))
    return mark


def is_busy(stream: int) -> bool:
    """Whether a stream waits."""
    return bool(_queues.get(stream))


def finish(*streams: int) -> int:
    """Synchronize with streams (none given: with all): whatever still waits would wait for ever."""
    with _lock:
        for stream in streams or list(_queues):
            if is_busy(stream):
                _advance(stream)
            if is_busy(stream):
                say("a stream waits for a value that nothing writes (a replay without its update): a device hangs here")
                forget(stream)
                return _BLOCKED
    return 0


def holding(mark: Mark) -> list[int]:
    """The stream that has not come to a mark yet, if there is one."""
    return [
        stream for stream, queue in _queues.items() for item in queue if isinstance(item, Task) and item.mark is mark
    ]


def forget(stream: int) -> None:
    """Give up what a stream holds; the others go on as if it had run."""
    with _lock:
        _drop(_queues.pop(stream, deque()))
        _advance(stream)


def abandon() -> list[str]:
    """Give up everything; returns what it was."""
    left = [f"stream {stream:#x} has {len(queue)} tasks that wait" for stream, queue in _queues.items() if queue]
    _queues.clear()
    return left


def _advance(stream: int) -> int:
    """Run what can be run: on this stream, and on every other that waited for it."""
    global _running
    if _running:  # by a task, such as one that frees memory: whoever runs it goes on with what it gave
        return 0
    _running = True
    try:
        code, _ = _run(stream)
        moved = True
        while moved:
            results = [_run(waiting) for waiting, queue in list(_queues.items()) if queue]
            moved = any(progress for _, progress in results)
            code = code or next((error for error, _ in results if error), 0)
        return code
    finally:
        _running = False


def _run(stream: int) -> tuple[int, bool]:
    """Run what can be run on one stream: CANN's code, and whether anything could."""
    queue, moved = _queues.get(stream, deque()), False
    while queue:
        head = queue[0]
        before = head.position if isinstance(head, Graph) else 0
        try:
            code = _replay(head) if isinstance(head, Graph) else _do(head, captured=False)
        except BaseException:  # the program is to end: nothing of this stream is left half done
            _drop(queue)
            raise
        if code == _WAITS:
            return 0, moved or (isinstance(head, Graph) and head.position != before)
        moved = True
        queue.popleft()
        if code:
            _drop(queue)
            return code, True
    return 0, moved


def _drop(queue: deque[Task | Graph]) -> None:
    for item in queue:
        if isinstance(item, Graph):
            item.position = 0
        elif item.mark is not None:
            item.mark.done = True
    queue.clear()


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
    try:
        if task.ready is not None and not task.ready():
            return _WAITS
        task.run()
    except Exception as error:  # C cannot pass it on; torch_npu raises it again with this text
        say(f"{task.launch.name if task.launch else 'task'}: {error}")
        return _FAILED
    if task.mark is not None:
        task.mark.done = True
    if task.launch is not None:
        launches.record(replace(task.launch, captured=True) if captured else task.launch)
    return 0
