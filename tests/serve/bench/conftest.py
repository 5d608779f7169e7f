"""The server with known delays, and the command run in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from ascend_m1_serve.bench.cli import KEY_VARIABLES

from .command import run
from .server import Known, running


class Ran(NamedTuple):
    """What a command did."""

    status: int
    out: str
    err: str


Bench = Callable[..., Ran]


@pytest.fixture
def known() -> Iterator[Known]:
    """A server that runs and answers at once."""
    with running(Known()) as server:
        yield server


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Runs ``bench serve`` with these arguments, without a key from outside."""
    for variable in KEY_VARIABLES:
        monkeypatch.delenv(variable, raising=False)

    def ran(*arguments: object) -> Ran:
        status = run([str(argument) for argument in arguments])
        return Ran(status, *capsys.readouterr())

    return ran
