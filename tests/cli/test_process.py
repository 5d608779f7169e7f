"""What only a process of its own can show: exit statuses, signals and pipes."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from pathlib import Path

COMMAND = (sys.executable, "-m", "ascend_m1")


def test_ctrl_c_and_a_closed_pipe_are_quiet(checkpoint: Path) -> None:
    # Both at once: most of the time is Python importing torch.
    generate = (*COMMAND, "generate", "--model", str(checkpoint), "--max-new-tokens", "50")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # A conversation that has answered waits for its next line: a moment to interrupt that is sure to come.
    chat = subprocess.Popen((*COMMAND, "chat", "--model", str(checkpoint), "--max-new-tokens", "1"), **pipes)
    piped = subprocess.Popen((*generate, "hello"), **pipes)
    assert piped.stdout is not None
    piped.stdout.close()
    assert chat.stdin is not None
    assert chat.stdout is not None
    chat.stdin.write(b"hello\n")
    chat.stdin.flush()
    assert chat.stdout.readline().endswith(b"\n")
    chat.send_signal(signal.SIGINT)
    assert chat.wait(60) == 130
    assert chat.stderr is not None
    assert chat.stderr.read() == b""
    assert piped.stderr is not None
    assert piped.stderr.read() == b""
    assert piped.wait(60) == 141


def test_standard_streams_that_are_full_or_closed(checkpoint: Path) -> None:
    line = f"{shlex.join(COMMAND)} generate --model {shlex.quote(str(checkpoint))} --max-new-tokens 1"
    for rest, status, words in (
        ("hello > /dev/full", 2, "cannot write the output"),
        ("hello >&-", 0, ""),
        ("<&-", 2, "the prompt is empty"),
    ):
        ran = subprocess.run(f"{line} {rest}", shell=True, capture_output=True, text=True, timeout=60)
        assert (ran.returncode, ran.stderr.count("\n")) == (status, bool(words)), (rest, ran.stderr)
        assert words in ran.stderr


def test_status_of_a_mistake(tmp_path: Path) -> None:
    ran = subprocess.run(
        (*COMMAND, "generate", "--model", str(tmp_path / "none"), "x"), capture_output=True, text=True, timeout=60
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("ascend-m1: error: ")
    assert ran.stderr.count("\n") == 1
