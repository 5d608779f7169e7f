"""The scheduler without a model."""

from __future__ import annotations

import time
from random import Random

from ascend_m1_serve.engine.block_pool import BlockPool
from ascend_m1_serve.engine.request import Request
from ascend_m1_serve.engine.scheduler import Scheduler
from ascend_m1_serve.protocol import Sampling


def decode_steps(sequences: int, steps: int) -> list[float]:
    """Seconds of planning each of some steps in which so many sequences are decoded, and of taking what came out."""
    pool = BlockPool(sequences * 40)
    scheduler = Scheduler(pool, sequences, sequences * 100, prefix_caching=True)
    for number in range(sequences):
        ids = [number] * 100
        scheduler.add(Request(number, ids, 100, Sampling(max_tokens=10**6), 5, arrived=0.0, random=Random(0)))
    found = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        plan = scheduler.plan()
        for request, count in [*plan.prefill, *((request, 1) for request in plan.decode)]:
            request.held += count
            request.ids.append(1)
        found.append(time.perf_counter() - start)
        assert len(plan.decode) in (0, sequences)
    return found[1:]  # without the prompts
