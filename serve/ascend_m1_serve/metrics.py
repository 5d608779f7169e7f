"""Prometheus metrics, by the names that MindIE Service gives them; label ``model_name``."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .answer import Answer
from .protocol import Engine, Stats

_FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
_NEXT = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
_WHOLE = (1, 2.5, 5, 10, 15, 20, 30, 40, 50, 60)
_TOKENS = (10, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 16000, 20000, 32000, 50000, 64000, 128000)
_LABEL = ["model_name"]


class Metrics:
    """What was measured since the start.

    Args:
        name: of the model.
        engine: asked for its state when metrics are read.
    """

    def __init__(self, name: str, engine: Engine) -> None:
        self._registry = CollectorRegistry()
        self._received = self._counter(name, "request_received", "requests that were taken")
        self._success = self._counter(name, "request_success", "requests that ended by themselves")
        self._failed = self._counter(name, "request_failed", "requests that were ended from outside")
        self._first = self._histogram(name, "time_to_first_token_seconds", "from arrival to the first token", _FIRST)
        self._next = self._histogram(name, "time_per_output_token_seconds", "between tokens", _NEXT)
        self._whole = self._histogram(name, "e2e_request_latency_seconds", "from arrival to the end", _WHOLE)
        self._prompt = self._histogram(name, "request_prompt_tokens", "tokens of a prompt", _TOKENS)
        self._generated = self._histogram(name, "request_generation_tokens", "tokens of an answer", _TOKENS)
        self.counts = {"received": 0, "success": 0, "failed": 0}
        self._registry.register(_EngineState(name, engine, self.counts))
        self.first_token, self.between_tokens = 0.0, 0.0  # seconds, of the last answer

    def received(self, count: int) -> None:
        """Requests were taken."""
        self._received.inc(count)
        self.counts["received"] += count

    def ended(self, answer: Answer) -> None:
        """An answer ended, by itself or not."""
        complete = answer.reason not in (None, "abort")
        (self._success if complete else self._failed).inc()
        self.counts["success" if complete else "failed"] += 1
        times = answer.times
        self._prompt.observe(len(answer.prompt))
        self._generated.observe(len(answer.tokens))
        if times.tokens:
            self.first_token = times.tokens[0] - times.submitted
            self._first.observe(self.first_token)
        for before, after in itertools.pairwise(times.tokens):
            self.between_tokens = after - before
            self._next.observe(self.between_tokens)
        if complete and times.ended is not None:
            self._whole.observe(times.ended - times.submitted)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)

    def _counter(self, model: str, name: str, text: str) -> Any:
        return Counter(name, text, _LABEL, registry=self._registry).labels(model)

    def _histogram(self, model: str, name: str, text: str, buckets: tuple[float, ...]) -> Any:
        return Histogram(name, text, _LABEL, registry=self._registry, buckets=buckets).labels(model)


class _EngineState(Collector):
    """Read from the engine when somebody asks."""

    def __init__(self, name: str, engine: Engine, counts: dict[str, int]) -> None:
        self._name, self._engine, self._counts = name, engine, counts
        self._seen = (time.monotonic(), engine.stats())

    def collect(self) -> Iterator[Metric]:
        stats, limits = self._engine.stats(), self._engine.limits
        (then, old), now = self._seen, time.monotonic()
        seconds = max(now - then, 1e-9)
        self._seen = (now, stats)
        ended = self._counts["success"] + self._counts["failed"]
        yield from self._totals(stats)
        values = {
            "num_requests_running": stats.running,
            "num_requests_waiting": stats.waiting,
            "num_requests_swapped": stats.swapped,
            "avg_prompt_throughput_toks_per_s": (stats.prompt_tokens - old.prompt_tokens) / seconds,
            "avg_generation_throughput_toks_per_s": (stats.generated_tokens - old.generated_tokens) / seconds,
            "failed_request_perc": self._counts["failed"] / ended if ended else 0,
            "npu_cache_usage_perc": 1 - stats.free_blocks / limits.blocks,
            "cpu_cache_usage_perc": 0,
            "npu_prefix_cache_hit_rate": stats.cached_tokens / stats.prompt_tokens if stats.prompt_tokens else 0,
        }
        for name, value in values.items():
            gauge = GaugeMetricFamily(name, name.replace("_", " "), labels=_LABEL)
            gauge.add_metric([self._name], value)
            yield gauge

    def _totals(self, stats: Stats) -> Iterator[Metric]:
        totals = {
            "num_preemptions": stats.preemptions,
            "prompt_tokens": stats.prompt_tokens,
            "generation_tokens": stats.generated_tokens,
        }
        for name, value in totals.items():
            counter = CounterMetricFamily(name, name.replace("_", " "), labels=_LABEL)
            counter.add_metric([self._name], value)
            yield counter
