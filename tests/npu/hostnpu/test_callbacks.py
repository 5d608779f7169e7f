"""What is raised while a stand-in answers C: nothing may be lost on the way through C."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from ascend_m1_hostnpu import capture, interrupts, queues

pytest_plugins = ["ascend_m1_hostnpu.pytest_plugin"]


def lost(*arguments: Any) -> Any:
    raise KeyError("lost")


def test_a_stand_in_that_breaks_is_an_error_of_the_operator(
    host_npu: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    x = torch.ones(2).npu()
    with monkeypatch.context() as broken:
        broken.setattr(capture, "takes", lost)
        with pytest.raises(RuntimeError, match="aclnnAdds: KeyError: 'lost'"):
            x + 1
    assert capfd.readouterr().err.splitlines() == ["ascend_m1_hostnpu: aclnnAdds: KeyError: 'lost'"]
    assert torch.equal((x + 1).cpu(), torch.full((2,), 2.0))


@pytest.mark.parametrize(
    ("symbol", "name", "call"),
    [
        ("aclrtRecordEvent", "is_busy", lambda: torch.npu.Event().record()),
        ("aclrtSynchronizeDevice", "finish", lambda: torch.npu.synchronize()),
    ],
)
def test_a_runtime_call_that_breaks_is_an_error(
    host_npu: Any, monkeypatch: pytest.MonkeyPatch, symbol: str, name: str, call: Callable[[], object]
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(queues, name, lost)
        with pytest.raises(RuntimeError, match=f"{symbol}.*: KeyError: 'lost'"):
            call()


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """The signal handled as after `import ascend_m1_hostnpu`; TorchAir has put one of its own in its place."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupts.install()
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_inside_an_operator_is_raised_behind_it(host_npu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, do = torch.ones(2).npu(), torch.zeros(2).npu(), queues._do

    def interrupted(task: Any, captured: bool) -> int:
        signal.raise_signal(signal.SIGINT)
        return do(task, captured)

    with monkeypatch.context() as context:
        context.setattr(queues, "_do", interrupted)
        with pytest.raises(KeyboardInterrupt):
            torch.add(x, 1, out=y)
    assert torch.equal(y.cpu(), torch.full((2,), 2.0))


# A thread interrupts the main one again and again, wherever it is; each must come out as one KeyboardInterrupt.
_INTERRUPTED = """
import os, random, signal, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests' shell ignores it
import ascend_m1_hostnpu, torch, torch_npu
x, side, working = torch.ones(8, 8).npu(), torch.npu.Stream(), threading.Event()
def interrupt():
    while True:
        working.wait()
        time.sleep(random.random() / 500)
        working.clear()
        os.kill(os.getpid(), signal.SIGINT)
def work():
    working.set()
    while True:
        (x @ x).sum().item()
        side.wait_stream(torch.npu.current_stream())
threading.Thread(target=interrupt, daemon=True).start()
for seen in range(100):
    try:
        work()
    except KeyboardInterrupt:
        pass
try:
    work()
finally:
    print(seen)
"""


def test_no_ctrl_c_is_lost_and_the_last_ends_the_program() -> None:
    done = subprocess.run([sys.executable, "-c", _INTERRUPTED], capture_output=True, text=True, timeout=100)
    assert done.stdout.splitlines()[-1] == "99"
    assert done.returncode == -signal.SIGINT
    assert done.stderr.splitlines()[-1] == "KeyboardInterrupt"
    assert "ignored" not in done.stderr
