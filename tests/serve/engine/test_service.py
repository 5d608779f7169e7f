"""The engine in its thread: many requests at once, ended from outside, stopped, failed."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import torch

from ascend_m1.errors import CheckpointError, InputError
from ascend_m1_serve.engine.core import Core
from ascend_m1_serve.engine.service import BuiltInEngine
from ascend_m1_serve.errors import EngineError
from ascend_m1_serve.protocol import Event, Sampling, Stream

from ...model.golden import load_model, load_prompts
from ...model.test_adapters import save_adapter
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
        assert len(await collect(engine.submit([1, 2, 3], SHORT))) == 24
        assert engine.stats().running == 0

    serve(scenario)


def test_graphs_of_all_sizes_are_made_at_the_start() -> None:
    core = core_of(load_model(CASE))

    async def scenario(engine: BuiltInEngine) -> None:
        await collect(engine.submit([1, 2, 3], SHORT))  # alone: the smallest would do

    serve(scenario, core)
    assert len(core.runner.decoder.decoders) > 1
    assert all(decoder.ready for decoder in core.runner.decoder.decoders)


def test_stop_ends_what_runs_and_takes_nothing_more() -> None:
    async def scenario(engine: BuiltInEngine) -> None:
        stream = engine.submit([1, 2, 3], LONG)
        await anext(stream)
        await engine.stop()
        assert await collect(stream) == []
        with pytest.raises(EngineError, match="being stopped"):
            engine.submit([1, 2, 3], SHORT)

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
    "sampling", [SHORT, Sampling(24, ignore_eos=True, temperature=1.0, top_k=5, top_p=0.9, seed=1, logprobs=2)]
)
def test_a_request_whose_logits_are_no_numbers_ends_alone(sampling: Sampling) -> None:
    """Token 7 stands for whatever overflows; what it left in the cache does not reach the others, either."""
    prompts, wanted = [[1, 2, 3], [4, 5, 6]], list[list[int]]()

    async def alone(engine: BuiltInEngine) -> None:
        for ids in prompts:
            events = await collect(engine.submit(ids, sampling))
            wanted.append([token for event in events for token in event.tokens])

    model = copy.deepcopy(load_model(CASE))
    serve(alone, core_of(model))
    assert not any(7 in tokens for tokens in wanted)
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = torch.nan

    async def scenario(engine: BuiltInEngine) -> None:
        for _ in range(2):
            streams = [engine.submit(ids, sampling) for ids in ([7], *prompts, [1, 7, 2])]
            first, *others, last = await asyncio.gather(*map(collect, streams), return_exceptions=True)
            for failed in (first, last):
                assert isinstance(failed, EngineError)
                assert "logits for this request are no finite numbers" in str(failed)
            assert [[token for event in events for token in event.tokens] for events in others] == wanted  # type: ignore[union-attr]
        assert engine.failure is None
        assert engine.stats().free_blocks == engine.limits.blocks
        assert engine.stats().generated_tokens == 4 * 24

    serve(scenario, core_of(model))


@pytest.mark.parametrize(
    ("ids", "message"),
    [([], "0 tokens"), ([1] * 512, "512 tokens: give 1 to 511"), ([331], "ids are 0 to 330"), ([-1], "0 to 330")],
)
def test_prompts_that_cannot_be_run(ids: list[int], message: str) -> None:
    async def scenario(engine: BuiltInEngine) -> None:
        with pytest.raises(InputError, match=message):
            engine.submit(ids, SHORT)

    serve(scenario)


def test_adapters_are_chosen_per_request(tmp_path: Path) -> None:
    """Mixed in one batch, each as if it were alone; prompts are not found across adapters; places are used again."""
    folders = {name: str(save_adapter(tmp_path / name, seed)) for seed, name in enumerate(("a", "b"))}
    prompt = ([token for ids, _, _ in load_prompts(CASE) for token in ids.tolist()] * 3)[:200]
    options = {"adapters": 1, "max_sequences": 4}

    async def answer(engine: BuiltInEngine, adapter: str | None) -> list[int]:
        return [
            token for event in await collect(engine.submit(prompt, SHORT, adapter=adapter)) for token in event.tokens
        ]

    wanted: dict[str | None, list[int]] = {}

    async def one_by_one(engine: BuiltInEngine) -> None:
        wanted[None] = await answer(engine, None)
        for name, folder in folders.items():
            await engine.add_adapter(name, folder)
            assert engine.adapters() == [name]
            wanted[name] = await answer(engine, name)
            await engine.remove_adapter(name)

    serve(one_by_one, core_of(copy.deepcopy(load_model(CASE)), **options))
    assert len(set(map(tuple, wanted.values()))) == 3

    async def together(engine: BuiltInEngine) -> None:
        for name, folder in folders.items():
            await engine.add_adapter(name, folder)
        which = [None, "a", "b", "a", None, "b"]
        answers = await asyncio.gather(*(answer(engine, name) for name in which))
        assert answers == [wanted[name] for name in which]

    serve(together, core_of(copy.deepcopy(load_model(CASE)), **options | {"adapters": 2}))


def test_adapters_that_cannot_be_used(tmp_path: Path) -> None:
    folder = str(save_adapter(tmp_path / "a", 1))

    async def scenario(engine: BuiltInEngine) -> None:
        with pytest.raises(InputError, match="'a' is not loaded: loaded are: none"):
            engine.submit([1], SHORT, adapter="a")
        with pytest.raises(CheckpointError, match="is not a directory"):
            await engine.add_adapter("a", str(tmp_path / "missing"))
        await engine.add_adapter("a", folder)
        with pytest.raises(InputError, match="'a' is loaded already"):
            await engine.add_adapter("a", folder)
        with pytest.raises(InputError, match="all 1 places are taken"):
            await engine.add_adapter("b", folder)
        with pytest.raises(InputError, match="'b' is not loaded: loaded are: a"):
            await engine.remove_adapter("b")

    serve(scenario, core_of(copy.deepcopy(load_model(CASE)), adapters=1))

    async def without(engine: BuiltInEngine) -> None:
        with pytest.raises(InputError, match="give --max-adapters, or maxLoras"):
            await engine.add_adapter("a", folder)

    serve(without)


def test_an_adapter_in_use_is_forgotten_when_its_requests_end(tmp_path: Path) -> None:
    folder = str(save_adapter(tmp_path / "a", 1))

    async def scenario(engine: BuiltInEngine) -> None:
        await engine.add_adapter("a", folder)
        stream = engine.submit([1, 2, 3], SHORT, adapter="a")
        removing = asyncio.create_task(engine.remove_adapter("a"))
        await asyncio.sleep(0)
        with pytest.raises(InputError, match="not loaded"):
            engine.submit([1], SHORT, adapter="a")
        assert len(await collect(stream)) == 24
        await removing
        await engine.add_adapter("a", folder)

    serve(scenario, core_of(copy.deepcopy(load_model(CASE)), adapters=1))
