"""The log of what the device was told to do: one entry a launch, with the bytes it reads and writes."""

from __future__ import annotations

import atexit
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    """One task on a stream.

    name: the operator (``aclnnRmsNorm``), ``memcpy``, ``memset``, a collective (``HcclAllReduce``) or ``triton:NAME``.
    read, written: bytes of device memory, counted once each.
    captured: run by a graph's replay.
    """

    name: str
    read: int
    written: int
    captured: bool = False

    @property
    def is_kernel(self) -> bool:
        """Everything but copies between host and device memory and fills, which need no core."""
        return self.name not in {"memcpy", "memset"}


_log: list[Launch] = []
_listening = 0


def listeners() -> int:
    """How many recordings are open."""
    return _listening


def record(launch: Launch) -> None:
    if _listening:
        _log.append(launch)


def report_at_exit() -> None:
    """Print the table of this process's launches when it ends."""
    listening = recording()
    result = listening.__enter__()

    def report() -> None:
        listening.__exit__(None, None, None)
        if result.launches:
            rank = os.environ.get("RANK")
            whose = f"rank {rank}" if rank else f"process {os.getpid()}"
            print(f"host NPU, {whose}:\n{table(result.launches)}", file=sys.stderr)

    atexit.register(report)


@contextmanager
def recording() -> Iterator[Recording]:
    """What is launched inside the block."""
    global _listening
    _listening += 1
    result = Recording(len(_log))
    try:
        yield result
    finally:
        _listening -= 1
        result.launches = _log[result.start :]
        if not _listening:
            _log.clear()


class Recording:
    """``launches`` once the block has ended."""

    def __init__(self, start: int) -> None:
        self.start = start
        self.launches: list[Launch] = []

    @property
    def kernels(self) -> list[Launch]:
        """Launches without copies and fills."""
        return [launch for launch in self.launches if launch.is_kernel]

    @property
    def bytes(self) -> int:
        """Device memory read and written."""
        return sum(launch.read + launch.written for launch in self.launches)

    def counts(self) -> Counter[str]:
        """Launches by name."""
        return Counter(launch.name for launch in self.launches)


def table(launches: list[Launch]) -> str:
    """Launches by name with their bytes, the most frequent first."""
    counts = Counter(launch.name for launch in launches)
    rows = [f"{'launches':>9} {'read':>15} {'written':>15}  name"]
    for name, count in counts.most_common():
        read = sum(launch.read for launch in launches if launch.name == name)
        written = sum(launch.written for launch in launches if launch.name == name)
        rows.append(f"{count:>9} {read:>15,} {written:>15,}  {name}")
    return "\n".join(rows)
