"""``pytest_plugins = ["ascend_m1_hostnpu.pytest_plugin"]``: torch_npu on the host NPU, and a fixture."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch_npu  # noqa: F401  after this package, which Python imports first

import ascend_m1_hostnpu

from . import launches, streams


@pytest.fixture
def host_npu() -> Iterator[ModuleType]:
    """The package; a test that leaves a capture, a wait or a recording behind fails."""
    before = launches.listeners()
    yield ascend_m1_hostnpu
    left = streams.abandon()
    if launches.listeners() != before:
        left.append("a recording was not closed")
    if left:
        pytest.fail(f"the test left the host NPU unfinished: {'; '.join(left)}")
