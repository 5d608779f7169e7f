"""Ctrl-C while the stand-ins answer: KeyboardInterrupt is raised where C has returned to the program.

An exception cannot pass through C, so none may be raised inside a callback. There the signal is kept, and the callback
returns a number that repeats the signal when C has read it and dropped it, behind the callback's last line of Python.
"""

from __future__ import annotations

import ctypes
import signal
import threading
from types import CodeType, FrameType
from typing import Any

pending = False  # a signal came inside a callback
callbacks: set[CodeType] = set()  # what C calls

_new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)
_interrupt = ctypes.cast(ctypes.pythonapi.PyErr_SetInterrupt, ctypes.c_void_p).value


class _Interrupting(int):
    """A number whose end interrupts the main thread: a capsule's destructor runs, no Python."""

    capsule: object


def repeat_after(code: int) -> int:
    """The code, to be returned to C at once; the kept signal comes again when C has it."""
    global pending
    pending = False
    result = _Interrupting(code)
    result.capsule = _new_capsule(_interrupt, None, _interrupt)
    return result


def install() -> None:
    """Keep Ctrl-C out of the callbacks, if this is the main thread and Python handles the signal at all."""
    before: Any = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        return

    def handle(number: int, frame: FrameType | None) -> None:
        global pending
        caller = frame
        while caller is not None and caller.f_code not in callbacks:
            caller = caller.f_back
        if caller is None:
            before(number, frame)
        else:
            pending = True

    signal.signal(signal.SIGINT, handle)
