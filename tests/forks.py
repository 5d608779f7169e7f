"""Processes without seconds of imports for each: forks of one that has imported torch, transformers and the trainer.

Each is a process of its own, in which nothing ran before. A function that is given to it must stand at the top of its
module.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

_CONTEXT = get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch.distributed.fsdp", "ascend_m1_finetune.training"])


def start(output: Path, function: Callable[..., Any], *arguments: Any) -> ForkServerProcess:
    """A process in this one's folder that calls the function; what it prints is added to a file."""
    process = _CONTEXT.Process(target=_call, args=(output, function, arguments))
    process.start()
    return process


def in_processes(count: int, folder: Path, function: Callable[..., Any], *arguments: Any, timeout: float = 300) -> None:
    """Call the function in each process of a gloo group.

    Raises:
        AssertionError: a process failed or they took too long; with the end of what they printed.
    """
    output = folder / "output"
    group = [start(output, _in_group, folder / "meeting", rank, count, function, arguments) for rank in range(count)]
    end = time.monotonic() + timeout
    while any(process.is_alive() for process in group) and not any(process.exitcode for process in group):
        if time.monotonic() > end:
            break
        time.sleep(0.02)
    for process in group:
        process.kill()
        process.join()
    statuses = [process.exitcode for process in group]
    assert statuses == [0] * count, f"exit statuses {statuses}:\n{output.read_text()[-6000:]}"


def _call(output: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    opened = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(opened, 1)
    os.dup2(opened, 2)
    torch.set_num_threads(1)
    function(*arguments)


def _in_group(meeting: Path, rank: int, count: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=count)
    function(*arguments)
    dist.destroy_process_group()
