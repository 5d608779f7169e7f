"""The model on MindSpore, in an environment without torch."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reaches for the network is wrong
os.environ.setdefault("GLOG_v", "3")  # warnings of its C++ about dynamic shapes

from collections.abc import Callable
from typing import NamedTuple

import mindspore
import pytest
from transformers.utils import logging

from ascend_m1.cli import main

logging.disable_progress_bar()
mindspore.set_device("CPU")  # before the first operator, whichever test comes first


class Ran(NamedTuple):
    """What a command did."""

    status: int
    out: str
    err: str


Cli = Callable[..., Ran]
GENERATE = ("generate", "--backend", "mindspore", "--device", "cpu")  # where there is an NPU, too


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Cli:
    """Runs ``ascend-m1`` with these arguments."""

    def run(*arguments: object) -> Ran:
        status = main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Ran(status, captured.out, captured.err)

    return run
