"""The engine in its thread: many requests at once, ended from outside, drained, stopped, failed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from ascend_m1.errors import InputError
from ascend_m1_serve.engine.core import Core
from ascend_m1_serve.engine.service import BuiltInEngine
from ascend_m1_serve.errors import EngineError
from ascend_m1_serve.protocol import Event, Sampling, Stream

from ...model.golden import load_model, load_prompts
from .run import core_of

CASE = "published-ratio"
LONG = Sampling(max_tokens=400, ignore_eos=True)
SHORT = Sampling(max_tokens=24, ignore_eos=True)


def serve(scenario: Callable[[BuiltInEngine], Awaitable[None]], core: Core | None = None) -> None:
    """Run a scenario against an engine, and end the engine."""

    async def run() -> None:
        engine = BuiltInEngine(core or core_of(load_model(CASE)), tokenizer=None)
        try:
            await asyncio.wait_for(scenario(engine), 60)
        finally:
            await engine.stop()

    asyncio.run(run())


async def collect(stream: Stream) -> list[Event]:
    return [event async for event in stream]


def test_all_at_once() -> None:
    prompts = load_prompts(CASE)

    async def scenario(engine: BuiltInEngine) -> None:
        streams = [engine.submit(ids.tolist(), SHORT) for ids, _, _ in prompts]
        for (_, _, wanted), events in zip(prompts, await asyncio.gather(*map(collect, streams)), strict=True):
            assert [token for event in events for token in event.tokens] == wanted.tolist()
            assert [event.finish for event in events] == [None] * (len(events) - 1) + ["length"]
        stats = engine.stats()
        assert (stats.running, stats.waiting, stats.free_blocks) == (0, 0, engine.limits.blocks)
        assert stats.generated_tokens == 24 * len(prompts)

    serve(scenario)


def test_what_is_aborted_frees_its_blocks_and_tells_nothing_more() -> None:
    async def scenario(engine: BuiltInEngine) -> None:
        stream = engine.submit([1, 2, 3], LONG)
        other = engine.submit([4, 5, 6], LONG)
        await anext(stream)
        stream.abort()
        stream.abort()
        assert await collect(stream) == []
        assert len(await collect(other)) == 400
        assert engine.stats().free_blocks == engine.limits.blocks

    serve(scenario)


def test_an_abort_before_the_first_step() -> None:
    async def scenario(engine: BuiltInEngine) -> None:
        engine.submit([1, 2, 3], LONG).abort()
        await engine.drain()
        assert engine.stats().running == 0

    serve(scenario)


def test_drain_finishes_what_runs_and_takes_nothing_more() -> None:
    async def scenario(engine: BuiltInEngine) -> None:
        stream = engine.submit([1, 2, 3], SHORT)
        draining = asyncio.create_task(engine.drain())
        await asyncio.sleep(0)
        with pytest.raises(EngineError, match="being stopped"):
            engine.submit([1, 2, 3], SHORT)
        await draining
        assert len(await collect(stream)) == 24

    serve(scenario)


def test_stop_ends_what_runs() -> None:
    async def scenario(engine: BuiltInEngine) -> None:
        stream = engine.submit([1, 2, 3], LONG)
        await anext(stream)
        await engine.stop()
        assert await collect(stream) == []

    serve(scenario)


def test_a_failure_reaches_every_listener(monkeypatch: pytest.MonkeyPatch) -> None:
    core = core_of(load_model(CASE))

    def fail(*_: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(core.runner, "run", fail)

    async def scenario(engine: BuiltInEngine) -> None:
        with pytest.raises(EngineError, match="RuntimeError: no memory"):
            await collect(engine.submit([1, 2, 3], SHORT))
        assert engine.failure == "the engine failed: RuntimeError: no memory"
        with pytest.raises(EngineError, match="no memory"):
            engine.submit([1], SHORT)

    serve(scenario, core)


@pytest.mark.parametrize(
    ("ids", "message"),
    [([], "0 tokens"), ([1] * 512, "512 tokens: give 1 to 511"), ([331], "ids are 0 to 330"), ([-1], "0 to 330")],
)
def test_prompts_that_cannot_be_run(ids: list[int], message: str) -> None:
    async def scenario(engine: BuiltInEngine) -> None:
        with pytest.raises(InputError, match=message):
            engine.submit(ids, SHORT)
        await engine.drain()

    serve(scenario)
