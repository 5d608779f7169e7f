"""Numbers are those that a hand or another library computes from the same records."""

from __future__ import annotations

import math
import statistics as stdlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ascend_m1_serve.bench import report
from ascend_m1_serve.bench.client import Record


def record(start: float, *texts: float, **more: Any) -> Record:
    """A completed request, due a second before it was sent, that ended half a second after its last text."""
    done = Record(scheduled=start - 1, max_tokens=9, start=start, text_times=list(texts), finish_reason="stop")
    done.end = (texts[-1] if texts else start) + 0.5
    for name, value in more.items():
        setattr(done, name, value)
    return done


RECORDS = [
    record(1.0, 3.0, 4.0, 6.0, usage=(10, 7)),
    record(2.0, 3.0, usage=(20, 1)),
    record(2.5, usage=(5, 0)),
    record(3.0, 4.0, error="HTTP 500: broken", end=5.0, usage=None),
    record(9.0, 9.5, end=None),
]


def test_latencies_by_hand() -> None:
    found = report.latencies(RECORDS)
    assert found["ttft"] == [2.0, 1.0]
    assert found["itl"] == [1.0, 2.0]
    assert found["tpot"] == [3.0 / 6]  # 7 tokens in three events
    assert found["e2e"] == [5.5, 1.5, 0.5]
    assert found["wait"] == [1.0, 1.0, 1.0]


def test_summary_by_hand() -> None:
    summary = report.summarize(RECORDS, 10.0)
    latency = summary.pop("latency")
    assert latency["ttft"] == pytest.approx({"mean": 1.5, "median": 1.5, "p90": 1.9, "p95": 1.95, "p99": 1.99})
    assert summary == {
        "duration": 10.0,
        "completed": 3,
        "failed": 1,
        "unfinished": 1,
        "first_error": "HTTP 500: broken",
        "prompt_tokens": 35,
        "output_tokens": 8,
        "without_usage": 0,
        "requests_per_second": 0.3,
        "output_tokens_per_second": 0.8,
        "tokens_per_second": 4.3,
        "peak_concurrency": 3,
    }


def test_without_usage_events_are_counted() -> None:
    summary = report.summarize([RECORDS[0], record(1.0, 2.0, 3.0)], 2.0)
    assert (summary["without_usage"], summary["output_tokens"]) == (1, 9)
    assert summary["prompt_tokens"] is None
    assert summary["tokens_per_second"] is None
    text = report.table(summary)
    assert "1 answers came without usage: their events with text are counted as tokens" in text
    assert "prompt tokens not known" in text


@given(st.lists(st.floats(0, 100), min_size=2, max_size=200))
def test_statistics(values: list[float]) -> None:
    found = report.statistics(values)
    assert found is not None
    cuts = stdlib.quantiles(values, n=100, method="inclusive")  # linear between neighbours, as numpy's default
    wanted = {"mean": stdlib.fmean(values), "median": stdlib.median(values)}
    assert found == pytest.approx(wanted | {f"p{p}": cuts[p - 1] for p in (90, 95, 99)}, abs=1e-9)


def test_statistics_of_little() -> None:
    assert report.statistics([]) is None
    assert report.statistics([2.0]) == {"mean": 2.0, "median": 2.0, "p90": 2.0, "p95": 2.0, "p99": 2.0}


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 20)), max_size=20))
def test_in_flight(spans: list[tuple[int, int]]) -> None:
    records = [record(float(start), end=float(start + length)) for start, length in spans]
    times, counts = report.in_flight(records, 99.0)
    assert times == sorted(times)
    for moment in range(42):
        wanted = sum(start <= moment < start + length for start, length in spans)
        at = [count for when, count in zip(times, counts, strict=True) if when <= moment]
        assert (at[-1] if at else 0) == wanted
    most = max((sum(a <= t < a + n for a, n in spans) for t in range(42)), default=0)
    assert max(counts, default=0) == most


def test_nothing_completed() -> None:
    summary = report.summarize([RECORDS[3]], 5.0)
    assert (summary["completed"], summary["failed"], summary["output_tokens_per_second"]) == (0, 1, 0.0)
    assert all(found is None for found in summary["latency"].values())
    assert "first failure: HTTP 500: broken" in report.table(summary)


def test_table() -> None:
    text = report.table(report.summarize(RECORDS, 10.0))
    assert text.startswith("3 requests completed, 1 failed, in 10.00 s; at most 3 at once\n")
    assert "1 more were under way" in text
    (row,) = [line for line in text.splitlines() if line.startswith("time to first token")]
    assert [float(value) for value in row.split()[4:]] == [1500, 1500, 1900, 1950, 1990]
    assert not any(math.isnan(float(value)) for value in row.split()[4:])
