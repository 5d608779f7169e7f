"""Requests are due as a Poisson process says, and never more under way than allowed."""

from __future__ import annotations

import asyncio
import statistics
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ascend_m1_serve.bench.client import Record
from ascend_m1_serve.bench.load import Load, arrival_times, offer
from ascend_m1_serve.bench.prompts import Prompt

COUNT = 20001


def gaps_of(rate: float, burstiness: float) -> list[float]:
    return [after - before for before, after in pairwise(arrival_times(COUNT, rate, burstiness, seed=5))]


# Of a gamma distribution with mean m and shape k the standard deviation is m / sqrt(k), that of the mean of n values
# m / sqrt(k · n): 4 of the latter are at most 4 / sqrt(0.25 · 20000) = 5.7 %.
@pytest.mark.parametrize("rate", [0.5, 20.0])
@pytest.mark.parametrize("burstiness", [0.25, 1.0, 16.0])
def test_gaps(rate: float, burstiness: float) -> None:
    gaps = gaps_of(rate, burstiness)
    assert statistics.mean(gaps) == pytest.approx(1 / rate, rel=0.057)
    assert statistics.stdev(gaps) == pytest.approx(1 / rate / burstiness**0.5, rel=0.1)


def test_gaps_of_a_poisson_process_are_exponential() -> None:
    gaps = gaps_of(10.0, 1.0)
    for seconds, share in ((0.01, 0.0952), (0.1, 0.6321), (0.3, 0.9502)):  # 1 - exp(-10 · seconds)
        assert sum(gap <= seconds for gap in gaps) / len(gaps) == pytest.approx(share, abs=0.015)


@given(st.integers(1, 100), st.floats(0.01, 1e4), st.floats(0.05, 100), st.integers(0, 1000))
def test_arrivals_ascend_from_zero(count: int, rate: float, burstiness: float, seed: int) -> None:
    times = arrival_times(count, rate, burstiness, seed)
    assert len(times) == count
    assert times[0] == 0
    assert times == sorted(times) == arrival_times(count, rate, burstiness, seed)


def test_infinite_rate() -> None:
    assert arrival_times(5, float("inf"), 1.0, 0) == [0.0] * 5


def test_sent_when_due() -> None:
    arrivals = [0.0, 0.05, 0.1, 0.2]
    load = Load()

    async def send(prompt: Prompt, record: Record, origin: float) -> None:
        record.end = time.perf_counter() - origin

    asyncio.run(offer(send, [Prompt(str(i), i + 1) for i in range(4)], arrivals, None, load))
    assert [record.max_tokens for record in load.records] == [1, 2, 3, 4]
    for record, due in zip(load.records, arrivals, strict=True):
        assert record.scheduled == due
        assert due - 0.001 <= record.start < due + 0.1  # asyncio may wake up a clock's tick early
    assert load.duration is not None
    assert load.duration >= 0.199


@given(st.integers(1, 12), st.integers(1, 12))
def test_concurrency(count: int, concurrency: int) -> None:
    load = Load()
    under_way, most = 0, 0

    async def send(prompt: Prompt, record: Record, origin: float) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        for _ in range(3):
            await asyncio.sleep(0)
        under_way -= 1

    asyncio.run(offer(send, [Prompt("", 1)] * count, [0.0] * count, concurrency, load))
    assert most == min(count, concurrency)
    assert len(load.records) == count
