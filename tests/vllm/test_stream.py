"""One request's events out of vLLM: every stream that was started is closed once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from ascend_m1_serve.vllm_stream import VllmStream


@pytest.mark.parametrize("turns", [0, 1, 3])
def test_an_abort_closes_it_at_any_time(turns: int) -> None:
    """Also before its task had its first turn."""

    async def outputs() -> AsyncIterator[Any]:
        await asyncio.sleep(60)
        yield None

    async def scenario() -> None:
        closed: list[VllmStream] = []
        stream = VllmStream(closed.append, None, 0)
        stream.start(outputs())
        for _ in range(turns):
            await asyncio.sleep(0)
        stream.abort()
        stream.abort()
        for _ in range(5):
            await asyncio.sleep(0)
        assert closed == [stream]
        assert [event async for event in stream] == []

    asyncio.run(scenario())
