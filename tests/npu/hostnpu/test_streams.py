"""Streams, events and graphs: what runs, when, and in what order."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest_plugins = ["ascend_m1_hostnpu.pytest_plugin"]
STEPS = st.sampled_from(["add", "double", "wait"])


def capture(graph: Any, **options: Any) -> Any:
    return torch.npu.graph(graph, **options)


def test_the_event_interface(host_npu: Any) -> None:
    start, end = torch.npu.Event(enable_timing=True), torch.npu.Event(enable_timing=True)
    start.record()
    x = torch.ones(4).npu() + 1
    end.record()
    end.synchronize()
    assert end.query()
    assert start.elapsed_time(end) >= 0
    side = torch.npu.Stream()
    side.wait_stream(torch.npu.current_stream())
    with torch.npu.stream(side):
        assert torch.npu.current_stream() == side
        y = x * 2
        x.record_stream(side)
    torch.npu.current_stream().wait_event(side.record_event())
    side.synchronize()
    assert side.query()
    assert torch.equal(y.cpu(), torch.full((4,), 4.0))


def test_nothing_after_a_wait_runs_before_the_event(host_npu: Any) -> None:
    gate, side = torch.npu.ExternalEvent(), torch.npu.Stream()
    x = torch.zeros(2).npu()
    with torch.npu.stream(side):
        gate.wait(side)
        x += 1
    assert not side.query()
    assert torch.equal(x.clone().cpu(), torch.zeros(2))
    gate.record(torch.npu.current_stream())
    assert side.query()
    assert torch.equal(x.cpu(), torch.ones(2))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(STEPS, max_size=6), min_size=1, max_size=3), st.integers(0, 100))
def test_streams_keep_their_own_order(host_npu: Any, programs: list[list[str]], seed: int) -> None:
    values = [torch.ones(1).npu() for _ in programs]
    gates: list[tuple[int, Any]] = []
    for index, (program, value) in enumerate(zip(programs, values, strict=True)):
        stream = torch.npu.Stream()
        with torch.npu.stream(stream):
            for step in program:
                if step == "wait":
                    gates.append((index, torch.npu.ExternalEvent()))
                    gates[-1][1].wait(stream)
                else:
                    value.add_(1) if step == "add" else value.mul_(2)
    random.Random(seed).shuffle(gates)
    for _, gate in gates:
        gate.record(torch.npu.current_stream())
    for program, value in zip(programs, values, strict=True):
        expected = 1.0
        for step in program:
            expected = {"add": expected + 1, "double": expected * 2, "wait": expected}[step]
        assert value.item() == expected


def test_a_capture_records_and_a_replay_computes_with_new_inputs(host_npu: Any) -> None:
    x, out = torch.ones(3).npu(), torch.zeros(3).npu()
    graph = torch.npu.NPUGraph()
    with host_npu.recording() as captured, capture(graph):
        assert torch.npu.is_current_stream_capturing()
        out.copy_(x * 2 + 1)
    assert captured.launches == []
    assert not torch.npu.is_current_stream_capturing()
    assert torch.equal(out.cpu(), torch.zeros(3))
    for value in (1.0, 5.0):
        x.fill_(value)
        with host_npu.recording() as log:
            graph.replay()
        assert torch.equal(out.cpu(), torch.full((3,), 2 * value + 1))
        assert all(launch.captured for launch in log.launches)
        assert log.counts() == {"aclnnMuls": 1, "aclnnAdds": 1, "aclnnInplaceCopy": 1}


def test_graphs_may_share_a_pool_and_be_dropped(host_npu: Any) -> None:
    x = torch.ones(3).npu()
    first, second = torch.npu.NPUGraph(), torch.npu.NPUGraph()
    with capture(first):
        a = x + 1
    with capture(second, pool=first.pool()):
        b = a * 3
    first.replay()
    second.replay()
    assert torch.equal(b.cpu(), torch.full((3,), 6.0))
    first.reset()
    second.replay()
    assert torch.equal(b.cpu(), torch.full((3,), 6.0))


def test_streams_that_fork_and_join_are_captured_together(host_npu: Any) -> None:
    x = torch.ones(4).npu()
    side, graph = torch.npu.Stream(), torch.npu.NPUGraph()
    with capture(graph):
        main = torch.npu.current_stream()
        doubled = x * 2
        side.wait_stream(main)
        with torch.npu.stream(side):
            tripled = doubled * 3
        other = doubled + 1
        main.wait_stream(side)
        out = tripled + other
    x.fill_(2)
    with host_npu.recording() as log:
        graph.replay()
    assert torch.equal(out.cpu(), torch.full((4,), 2 * 2 * 3 + 2 * 2 + 1.0))
    assert len(log.launches) == 4
    with torch.npu.stream(side):  # it is an ordinary stream again
        y = x + 1
    assert torch.equal(y.cpu(), torch.full((4,), 3.0))


def test_to_synchronize_in_a_capture_is_an_error(host_npu: Any) -> None:
    x, graph = torch.ones(2).npu(), torch.npu.NPUGraph()
    with pytest.raises(RuntimeError, match="waits for a stream during a capture"), capture(graph):
        (x + 1).sum().item()
    assert not torch.npu.is_current_stream_capturing()
    assert torch.equal((x + 1).cpu(), torch.full((2,), 2.0))


def scaled(x: Tensor, out: Tensor, factor: float) -> None:
    torch.mul(x, factor, out=out)


class Updatable:
    """A graph with one task group that waits for its update, made by hand as the auto dispatch does it."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.out = x, torch.zeros_like(x)
        self.graph, self.event = torch.npu.NPUGraph(), torch.npu.ExternalEvent()
        self.stream = torch.npu.Stream()
        with capture(self.graph):
            stream = torch.npu.current_stream()
            self.event.wait(stream)
            self.event.reset(stream)
            torch.npu.graph_task_group_begin(stream)
            scaled(self.x, self.out, 2.0)
            self.handle = torch.npu.graph_task_group_end(stream)
            self.result = self.out + 1

    def update(self, factor: float) -> None:
        with torch.npu.stream(self.stream):
            torch.npu.graph_task_update_begin(self.stream, self.handle)
            scaled(self.x, self.out, factor)
            torch.npu.graph_task_update_end(self.stream)
            self.event.record(self.stream)


@pytest.fixture
def updatable(host_npu: Any) -> Updatable:
    return Updatable(torch.ones(3).npu())


@pytest.mark.parametrize("update_first", [True, False])
def test_a_task_group_runs_with_its_update(updatable: Updatable, update_first: bool) -> None:
    for factor in (3.0, 7.0):
        steps = [lambda f=factor: updatable.update(f), updatable.graph.replay]
        for step in steps if update_first else reversed(steps):
            step()
        assert torch.equal(updatable.result.cpu(), torch.full((3,), factor + 1))


def test_a_replay_without_its_update_is_an_error_not_a_hang(updatable: Updatable) -> None:
    updatable.update(3.0)
    updatable.graph.replay()
    torch.npu.synchronize()
    updatable.graph.replay()
    with pytest.raises(RuntimeError, match="a replay without its update"):
        torch.npu.synchronize()


def test_an_update_must_give_the_same_operators(updatable: Updatable) -> None:
    stream = updatable.stream
    with torch.npu.stream(stream):
        torch.npu.graph_task_update_begin(stream, updatable.handle)
        torch.add(updatable.x, updatable.x, out=updatable.out)
        with pytest.raises(RuntimeError, match="other operators than were captured"):
            torch.npu.graph_task_update_end(stream)


def test_attention_is_updated_by_the_automatic_dispatch(host_npu: Any) -> None:
    """The way a decode step with paged attention is captured: its lengths are arguments on the host."""
    query = torch.randn(2, 4, 1, 64).half().npu()
    key, value = (torch.randn(2, 2, 32, 64).half().npu() for _ in range(2))

    def attend(lengths: list[int]) -> Tensor:
        heads = {"num_heads": 4, "num_key_value_heads": 2, "input_layout": "BNSD", "scale": 0.125}
        attention = torch.ops.npu.npu_fused_infer_attention_score
        return attention(query, key, value, actual_seq_lengths_kv=lengths, **heads)[0]

    graph = torch.npu.NPUGraph()
    with capture(graph, auto_dispatch_capture=True):
        out = attend([5, 9]) * 2
    for lengths in ([5, 9], [32, 1]):
        graph.update(cpu_update_input=[{"actual_seq_lengths_kv": lengths}])
        graph.replay()
        torch.npu.synchronize()
        assert torch.equal(out.cpu(), (attend(lengths) * 2).cpu())
