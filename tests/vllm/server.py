"""vLLM's OpenAI server as a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# The command ``vllm`` of this build for CPUs does not start (it looks for the version of a package "vllm").
SERVER = "vllm.entrypoints.openai.api_server"


def environment() -> dict[str, str]:
    """One core, a small cache."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else all engines share the first core
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }


@contextmanager
def serving(model: Path, log: Path, *options: str, timeout: int = 240) -> Iterator[str]:
    """The address of a server that answers.

    Raises:
        AssertionError: it ended or did not answer in time; with the end of its output.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = ["--host", "127.0.0.1", "--port", str(port)]
    command = [sys.executable, "-m", SERVER, "--model", str(model), *address, *options]
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment(), stdout=output, stderr=output, start_new_session=True)
    try:
        end = time.monotonic() + timeout
        while not _answers(f"http://127.0.0.1:{port}/health"):
            running = process.poll() is None and time.monotonic() < end
            assert running, f"exit status {process.poll()}:\n{log.read_text()[-6000:]}"
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(30)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
