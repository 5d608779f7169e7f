"""When requests are sent, and how many are under way at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from .client import Record
from .prompts import Prompt

Send = Callable[[Prompt, Record, float], Awaitable[None]]


@dataclass
class Load:
    """A measurement: records of the requests sent so far, in this order, and its seconds, once it is over."""

    records: list[Record] = field(default_factory=list)
    duration: float | None = None


def arrival_times(count: int, rate: float, burstiness: float, seed: int) -> list[float]:
    """Seconds at which requests are due; the first is due at once.

    Gaps are gamma distributed with mean 1 / rate and shape ``burstiness``: 1 makes it a Poisson process, less makes
    bursts, more makes them even. An infinite rate makes all due at once.
    """
    gaps = np.random.default_rng([seed, 3]).gamma(burstiness, 1 / (rate * burstiness), max(count - 1, 0))
    times: list[float] = np.concatenate([np.zeros(1), np.cumsum(gaps)])[:count].tolist()
    return times


async def offer(
    send: Send, prompts: Sequence[Prompt], arrivals: Sequence[float], concurrency: int | None, load: Load
) -> None:
    """Send every request when it is due, or as soon as fewer than ``concurrency`` are under way.

    ``load`` is filled in while it goes on: when cancelled, it holds what was measured until then.
    """
    slots = asyncio.Semaphore(concurrency or len(prompts))
    origin = time.perf_counter()

    async def one(prompt: Prompt, due: float) -> None:
        await asyncio.sleep(origin + due - time.perf_counter())
        async with slots:
            record = Record(due, prompt.max_tokens, time.perf_counter() - origin)
            load.records.append(record)
            await send(prompt, record, origin)

    try:
        await asyncio.gather(*map(one, prompts, arrivals))
    finally:
        load.duration = time.perf_counter() - origin
