"""From records to numbers. All times are seconds; only the table shows milliseconds.

TTFT: from sending a request to its first text. ITL: between one event with text and the next. TPOT: from a request's
first text to its last, divided by its tokens less one. e2e: from sending to the end of the answer. wait: from when a
request was due to when it was sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .client import Record

PERCENTILES = (90, 95, 99)
TITLES = {
    "ttft": "time to first token",
    "tpot": "time per output token",
    "itl": "inter-token latency",
    "e2e": "end to end",
    "wait": "wait before sending",
}


def ttft(record: Record) -> float | None:
    """None: no text came."""
    return record.text_times[0] - record.start if record.text_times else None


def itl(record: Record) -> list[float]:
    """One less than the events with text."""
    return [float(gap) for gap in np.diff(record.text_times)]


def tpot(record: Record) -> float | None:
    """None: all text came at once."""
    if len(record.text_times) < 2 or record.output_tokens < 2:
        return None
    return (record.text_times[-1] - record.text_times[0]) / (record.output_tokens - 1)


def latencies(records: Sequence[Record]) -> dict[str, list[float]]:
    """The values of each latency; of completed requests only."""
    done = completed(records)
    return {
        "ttft": [value for record in done if (value := ttft(record)) is not None],
        "tpot": [value for record in done if (value := tpot(record)) is not None],
        "itl": [gap for record in done for gap in itl(record)],
        "e2e": [record.end - record.start for record in done if record.end is not None],
        "wait": [record.start - record.scheduled for record in done],
    }


def completed(records: Sequence[Record]) -> list[Record]:
    """Those whose answer came to its end."""
    return [record for record in records if record.end is not None and record.error is None]


def statistics(values: Sequence[float]) -> dict[str, float] | None:
    """Mean, median and percentiles, linear between neighbours; None of nothing."""
    if not values:
        return None
    found = {"mean": float(np.mean(values)), "median": float(np.median(values))}
    return found | {f"p{p}": float(np.percentile(values, p)) for p in PERCENTILES}


def in_flight(records: Sequence[Record], duration: float) -> tuple[list[float], list[int]]:
    """Times, ascending, and how many requests are under way from each on. Who leaves makes room at the same time."""
    changes = [(record.start, 1) for record in records]
    changes += [(duration if record.end is None else record.end, -1) for record in records]
    changes.sort()
    return [when for when, _ in changes], [int(n) for n in np.cumsum([change for _, change in changes])]


def summarize(records: Sequence[Record], duration: float) -> dict[str, Any]:
    """Everything in a few numbers; throughput and latencies are those of completed requests.

    Args:
        duration: seconds from the measurement's start to its end.
    """
    done = completed(records)
    errors = [record.error for record in records if record.error is not None]
    output = sum(record.output_tokens for record in done)
    usages = [record.usage for record in done if record.usage is not None]
    prompt = sum(tokens for tokens, _ in usages) if len(usages) == len(done) else None
    return {
        "duration": duration,
        "completed": len(done),
        "failed": len(errors),
        "unfinished": len(records) - len(done) - len(errors),
        "first_error": errors[0] if errors else None,
        "prompt_tokens": prompt,
        "output_tokens": output,
        "without_usage": len(done) - len(usages),
        "requests_per_second": len(done) / duration,
        "output_tokens_per_second": output / duration,
        "tokens_per_second": None if prompt is None else (prompt + output) / duration,
        "peak_concurrency": max(in_flight(records, duration)[1], default=0),
        "latency": {name: statistics(values) for name, values in latencies(records).items()},
    }


def as_dict(record: Record) -> dict[str, Any]:
    """A record for JSON, with what follows from it."""
    return {
        "scheduled": record.scheduled,
        "start": record.start,
        "end": record.end,
        "ttft": ttft(record),
        "tpot": tpot(record),
        "itl": itl(record),
        "max_tokens": record.max_tokens,
        "prompt_tokens": None if record.usage is None else record.usage[0],
        "output_tokens": record.output_tokens,
        "counted_by": "events" if record.usage is None else "usage",
        "finish_reason": record.finish_reason,
        "error": record.error,
    }


def table(summary: dict[str, Any]) -> str:
    """The summary for people."""
    lines = [
        f"{summary['completed']} requests completed, {summary['failed']} failed, in {summary['duration']:.2f} s; "
        f"at most {summary['peak_concurrency']} at once"
    ]
    if summary["failed"]:
        lines.append(f"first failure: {summary['first_error']}")
    if summary["unfinished"]:
        lines.append(f"{summary['unfinished']} more were under way when it was stopped; they are not counted")
    total = summary["tokens_per_second"]
    lines.append(
        f"throughput: {summary['requests_per_second']:.2f} requests/s, "
        f"{summary['output_tokens_per_second']:.1f} output tokens/s, "
        + ("prompt tokens not known" if total is None else f"{total:.1f} tokens/s with the prompts'")
    )
    prompt = "not known" if summary["prompt_tokens"] is None else f"{summary['prompt_tokens']:,}"
    lines.append(f"tokens: prompts {prompt}, answers {summary['output_tokens']:,}")
    if summary["without_usage"]:
        lines.append(
            f"  {summary['without_usage']} answers came without usage: their events with text are counted as tokens"
        )
    lines += ["", f"{'milliseconds':<22}" + "".join(f"{name:>11}" for name in _columns())]
    for name, title in TITLES.items():
        found = summary["latency"][name]
        values = ["-" if found is None else f"{found[column] * 1e3:.2f}" for column in _columns()]
        lines.append(f"{title:<22}" + "".join(f"{value:>11}" for value in values))
    return "\n".join(lines) + "\n"


def _columns() -> list[str]:
    return ["mean", "median", *(f"p{p}" for p in PERCENTILES)]
