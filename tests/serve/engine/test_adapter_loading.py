"""What happens while an adapter is being loaded: requests, unloading, failures, the engine's end."""

from __future__ import annotations

import asyncio
import copy
import threading
from pathlib import Path

import pytest

from ascend_m1.adapters import Adapter, AdapterSlots, read_adapter
from ascend_m1.errors import CheckpointError, InputError
from ascend_m1_serve.engine.core import Core
from ascend_m1_serve.engine.service import BuiltInEngine
from ascend_m1_serve.errors import EngineError
from ascend_m1_serve.protocol import Sampling

from ...model.golden import load_model
from ...model.test_adapters import save_adapter
from .run import core_of
from .test_service import CASE, collect, serve

READ = "ascend_m1_serve.engine.service.read_adapter"
PROMPT = [1 + i % 300 for i in range(200)]
SHORT = Sampling(max_tokens=8, ignore_eos=True)


def core() -> Core:
    return core_of(copy.deepcopy(load_model(CASE)), adapters=1, max_sequences=4)


async def answer(engine: BuiltInEngine, adapter: str | None) -> list[int]:
    events = await collect(engine.submit(PROMPT, SHORT, adapter=adapter))
    return [token for event in events for token in event.tokens]


class SlowRead:
    """``read_adapter``, which waits to be let go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        monkeypatch.setattr(READ, self.read)

    def read(self, *arguments: object) -> Adapter:
        self.begun.set()
        assert self.go_on.wait(30)
        return read_adapter(*arguments)  # type: ignore[arg-type]

    async def loading(self, engine: BuiltInEngine, folder: Path) -> asyncio.Task[None]:
        task = asyncio.create_task(engine.add_adapter("a", str(folder)))
        assert await asyncio.to_thread(self.begun.wait, 30)
        return task


def test_it_is_found_when_its_weights_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer without them meanwhile, which would stay in the prefix cache, either."""
    folder = save_adapter(tmp_path / "a", 1)
    wanted: list[int] = []

    async def alone(engine: BuiltInEngine) -> None:
        await engine.add_adapter("a", str(folder))
        wanted.extend(await answer(engine, "a"))

    serve(alone, core())
    slow = SlowRead(monkeypatch)

    async def scenario(engine: BuiltInEngine) -> None:
        loading = await slow.loading(engine, folder)
        assert engine.adapters() == []
        with pytest.raises(InputError, match="'a' is not loaded"):
            engine.submit(PROMPT, SHORT, adapter="a")
        with pytest.raises(InputError, match="'a' is not loaded"):
            await engine.remove_adapter("a")
        with pytest.raises(InputError, match="'a' is being loaded already"):
            await engine.add_adapter("a", str(folder))
        with pytest.raises(InputError, match="all 1 places are taken"):
            await engine.add_adapter("b", str(folder))
        slow.go_on.set()
        await loading
        assert await answer(engine, "a") == wanted

    serve(scenario, core())


@pytest.mark.parametrize("cancelled", [False, True])
def test_what_cannot_be_loaded_gives_its_place_back_once(
    cancelled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where somebody wants to unload it meanwhile."""
    slow = SlowRead(monkeypatch)

    async def scenario(engine: BuiltInEngine) -> None:
        loading = await slow.loading(engine, tmp_path / "missing")
        with pytest.raises(InputError, match="'a' is not loaded"):
            await engine.remove_adapter("a")
        slow.go_on.set()
        if cancelled:
            loading.cancel()
        with pytest.raises(asyncio.CancelledError if cancelled else CheckpointError):
            await loading
        await engine.add_adapter("a", str(save_adapter(tmp_path / "a", 1)))
        with pytest.raises(InputError, match="all 1 places are taken"):
            await engine.add_adapter("b", str(tmp_path / "a"))

    serve(scenario, core())


def test_a_load_whose_listener_goes_away_does_not_end_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def write(*_: object) -> None:
        asked.set()
        go_on.wait(30)

    monkeypatch.setattr(AdapterSlots, "write", write)

    async def scenario(engine: BuiltInEngine) -> None:
        loading = asyncio.create_task(engine.add_adapter("a", str(save_adapter(tmp_path / "a", 1))))
        assert await asyncio.to_thread(asked.wait, 30)
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        go_on.set()
        assert len(await answer(engine, None)) == 8

    serve(scenario, core())


@pytest.mark.parametrize("stopped", [False, True])
def test_a_load_ends_with_the_engine(stopped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And none begins after that."""
    folder = save_adapter(tmp_path / "a", 1)
    slow, own = SlowRead(monkeypatch), core()

    def fail(*_: object) -> None:
        raise RuntimeError("no memory")

    async def scenario(engine: BuiltInEngine) -> None:
        loading = await slow.loading(engine, folder)
        if stopped:
            await engine.stop()
        else:
            monkeypatch.setattr(own.runner, "run", fail)
            with pytest.raises(EngineError):
                await answer(engine, None)
        slow.go_on.set()
        message = "being stopped" if stopped else "no memory"
        for call in (loading, engine.add_adapter("b", str(folder))):
            with pytest.raises(EngineError, match=message):
                await asyncio.wait_for(call, 10)

    serve(scenario, own)


def test_what_was_asked_of_an_engine_that_fails_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for the engine's thread, which fails in its step before it comes to it."""
    begun, go_on, own = threading.Event(), threading.Event(), core()

    def fail(*_: object) -> None:
        begun.set()
        go_on.wait(30)
        raise RuntimeError("no memory")

    monkeypatch.setattr(own.runner, "run", fail)

    async def scenario(engine: BuiltInEngine) -> None:
        stream = engine.submit(PROMPT, SHORT)
        assert await asyncio.to_thread(begun.wait, 30)
        loading = asyncio.create_task(engine.add_adapter("a", str(save_adapter(tmp_path / "a", 1))))
        while not engine._asked:
            await asyncio.sleep(0.01)
        go_on.set()
        with pytest.raises(EngineError, match="no memory"):
            await asyncio.wait_for(loading, 10)
        with pytest.raises(EngineError, match="no memory"):
            await collect(stream)

    serve(scenario, own)
