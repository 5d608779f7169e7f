"""Events order streams, also where one of them waits for an ExternalEvent."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest_plugins = ["ascend_m1_hostnpu.pytest_plugin"]


class Blocked:
    """A stream that waits for ``open``, with ``x += 1`` behind the wait; and another stream."""

    def __init__(self) -> None:
        self.gate, self.stream, self.other = torch.npu.ExternalEvent(), torch.npu.Stream(), torch.npu.Stream()
        self.x = torch.zeros(2).npu()
        with torch.npu.stream(self.stream):
            self.early = self.stream.record_event()
            self.gate.wait(self.stream)
            self.x += 1
            self.late = self.stream.record_event()

    def open(self) -> None:
        self.gate.record(torch.npu.current_stream())


@pytest.fixture
def blocked(host_npu: Any) -> Iterator[Blocked]:
    made = Blocked()
    yield made
    made.open()


def doubled(x: Tensor, stream: Any) -> Tensor:
    with torch.npu.stream(stream):
        return x * 2


def test_a_stream_waits_for_an_event_of_a_stream_that_waits(blocked: Blocked) -> None:
    blocked.other.wait_event(blocked.late)
    y = doubled(blocked.x, blocked.other)
    assert not blocked.other.query()
    blocked.open()
    assert blocked.other.query()
    assert torch.equal(y.cpu(), torch.full((2,), 2.0))


def test_wait_stream_is_the_same(blocked: Blocked) -> None:
    blocked.other.wait_stream(blocked.stream)
    y = doubled(blocked.x, blocked.other)
    assert not blocked.other.query()
    blocked.open()
    assert torch.equal(y.cpu(), torch.full((2,), 2.0))


def test_what_was_before_the_wait_is_not_waited_for(blocked: Blocked) -> None:
    blocked.other.wait_event(blocked.early)
    y = doubled(blocked.x, blocked.other)
    assert blocked.other.query()
    assert torch.equal(y.cpu(), torch.zeros(2))


def test_an_event_has_happened_when_its_stream_has_come_to_it(blocked: Blocked) -> None:
    assert blocked.early.query()
    assert not blocked.late.query()
    blocked.early.synchronize()
    blocked.open()
    assert blocked.late.query()
    blocked.late.synchronize()


def test_an_event_recorded_again_is_the_newer_place(blocked: Blocked) -> None:
    blocked.late.record(torch.npu.current_stream())
    assert blocked.late.query()
    blocked.other.wait_event(blocked.late)
    assert torch.equal(doubled(blocked.x, blocked.other).cpu(), torch.zeros(2))


def test_to_wait_for_what_never_happens_is_an_error_not_a_hang(blocked: Blocked) -> None:
    with pytest.raises(RuntimeError, match="waits for a value that nothing writes"):
        blocked.late.synchronize()
    assert blocked.stream.query()  # what it held is given up


def test_a_stream_goes_on_when_the_one_it_waits_for_is_given_up(blocked: Blocked) -> None:
    blocked.other.wait_event(blocked.late)
    y = doubled(blocked.x, blocked.other)
    with pytest.raises(RuntimeError, match="waits for a value that nothing writes"):
        blocked.stream.synchronize()
    assert blocked.other.query()
    assert torch.equal(y.cpu(), torch.zeros(2))


def test_memory_in_use_on_a_stream_that_waits_is_not_given_away(blocked: Blocked) -> None:
    used = torch.ones(1000).npu()
    address = used.data_ptr()
    y = doubled(used, blocked.stream)
    used.record_stream(blocked.stream)
    del used
    others = [torch.zeros(1000).npu() for _ in range(3)]
    assert address not in [tensor.data_ptr() for tensor in others]
    blocked.open()
    assert torch.equal(y.cpu(), torch.full((1000,), 2.0))


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.sets(st.integers(0, 7)), st.integers(0, 100))
def test_events_make_one_order_of_many_streams(host_npu: Any, order: list[int], gated: set[int], seed: int) -> None:
    """Step i runs on stream order[i], after an event behind step i - 1; gates open in any order."""
    streams, value = [torch.npu.Stream() for _ in range(4)], torch.ones(1).npu()
    gates, expected, before = [], 1.0, None
    for step, index in enumerate(order):
        stream = streams[index]
        with torch.npu.stream(stream):
            if before is not None:
                stream.wait_event(before)
            if step in gated:
                gates.append(torch.npu.ExternalEvent())
                gates[-1].wait(stream)
            value.mul_(2).add_(step)
            before = stream.record_event()
        expected = expected * 2 + step
    random.Random(seed).shuffle(gates)
    for gate in gates:
        gate.record(torch.npu.current_stream())
    assert value.item() == expected


def test_a_write_behind_a_wait_opens_what_waits_for_it(host_npu: Any) -> None:
    """Whichever stream was made first: the writing one runs last."""
    first, second = torch.npu.Stream(), torch.npu.Stream()
    inner, outer, x = torch.npu.ExternalEvent(), torch.npu.ExternalEvent(), torch.zeros(1).npu()
    with torch.npu.stream(first):
        inner.wait(first)
        x += 1
    with torch.npu.stream(second):
        outer.wait(second)
        inner.record(second)
    outer.record(torch.npu.current_stream())
    assert first.query()
    assert x.item() == 1.0


def test_threads_may_use_one_stream(host_npu: Any) -> None:
    """Each task runs once, as a whole."""
    x = torch.zeros(200_000).npu()

    def add() -> None:
        for _ in range(50):
            x.add_(1)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(x.cpu(), torch.full((200_000,), 200.0))
