"""The same as ``engine.run`` without ten seconds of imports for each engine.

One process imports vLLM and then forks: each job has a process of its own, in which no other engine ever was. The
workers of a parallel engine are forks, too.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import traceback
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from .engine import Job, answer, environment
from .limits import fork_workers, schedule_asynchronously


@lru_cache(maxsize=1)
def _parent() -> subprocess.Popen[str]:
    """The process that forks, as long as this one lives."""
    started = subprocess.Popen(
        [sys.executable, "-m", __name__],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **environment(1)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    atexit.register(_stop, started)
    return started


def _stop(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run(job: Job, folder: Path, timeout: int = 300) -> dict[str, Any]:
    """What the engine answers.

    Raises:
        AssertionError: the process failed, with the end of its output; or it took too long.
    """
    (folder / "job.json").write_text(json.dumps(asdict(job)))
    status, output = _wait(folder, timeout)
    assert status == 0, f"exit status {status}:\n{output[-6000:]}"
    answered: dict[str, Any] = json.loads((folder / "answer.json").read_text())
    return answered


def run_module(name: str, arguments: list[str], folder: Path, timeout: int = 300) -> tuple[int, str]:
    """``python -m name arguments``: exit status and output.

    Raises:
        AssertionError: it took too long.
    """
    (folder / "command.json").write_text(json.dumps([name, *arguments]))
    return _wait(folder, timeout)


def _wait(folder: Path, timeout: int) -> tuple[int, str]:
    parent, output = _parent(), folder / "output"
    assert parent.stdin is not None
    assert parent.stdout is not None
    parent.stdin.write(f"{folder}\n")
    parent.stdin.flush()
    if not select.select([parent.stdout], [], [], timeout)[0]:
        _stop(parent)
        _parent.cache_clear()
        raise AssertionError(f"no end in {timeout} s:\n{output.read_text()[-6000:]}")
    return int(parent.stdout.readline()), output.read_text()


def _child(folder: Path) -> None:
    """Do what the folder's files say; never returns."""
    status = 1
    try:
        output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        fork_workers()
        if (folder / "command.json").exists():
            _command(folder)
        else:
            _job(folder)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _job(folder: Path) -> None:
    job = json.loads((folder / "job.json").read_text())
    os.environ.update(job["environment"])
    if job["engine"].get("async_scheduling"):
        schedule_asynchronously()
    answer(job, folder / "answer.json")


def _command(folder: Path) -> None:
    sys.argv = json.loads((folder / "command.json").read_text())
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def main() -> None:
    """Fork for each folder whose name comes in; answer with exit statuses."""
    replies = os.dup(1)
    os.dup2(2, 1)
    import vllm
    import vllm.entrypoints.launchers.api_server.entry
    import vllm.v1.engine.llm_engine
    import vllm.v1.worker.cpu_worker  # noqa: F401

    import ascend_m1_vllm.model  # noqa: F401

    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            _child(Path(line.strip()))
        _, status = os.waitpid(process, 0)
        os.write(replies, f"{os.waitstatus_to_exitcode(status)}\n".encode())


if __name__ == "__main__":
    main()
