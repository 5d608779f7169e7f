"""The built-in engine behind the ``Engine`` protocol: a thread that steps, the event loop that asks and listens."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from ascend_m1.adapters import read_adapter

from ..errors import EngineError
from ..protocol import Event, Grammar, Limits, Sampling, Stats
from .adapter_table import AdapterTable, Loaded
from .core import Core, check_prompt
from .grammar import GrammarCompiler
from .request import Request

_log = logging.getLogger(__name__)
_NO_TOKEN = (
    "the model's logits for this request are no finite numbers: in float16 they may be too large: use --dtype "
    "bfloat16; else the checkpoint has such weights"
)


class BuiltInStream:
    """The events of one request. Not for two listeners."""

    def __init__(self, engine: BuiltInEngine, adapter: Loaded | None) -> None:
        self._engine, self.adapter = engine, adapter
        self._events: deque[Event] = deque()
        self._news = asyncio.Event()
        self._ended = False
        self.request: Request | None = None  # the engine's thread sets it

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        while not self._events:
            if self._ended:
                raise StopAsyncIteration
            if self._engine.failure is not None:
                raise EngineError(self._engine.failure)
            self._news.clear()
            await self._news.wait()
        event = self._events.popleft()
        self._ended = event.finish is not None
        if event.finish == "error":
            raise EngineError(_NO_TOKEN)
        return event

    def abort(self) -> None:
        if not self._ended:
            self._ended = True
            self._events.clear()
            self._news.set()
            self._engine.forget(self)

    def put(self, event: Event) -> None:
        """In the event loop's thread."""
        if not self._ended:
            self._events.append(event)
            self._news.set()

    def wake(self) -> None:
        """Let the listener look again."""
        self._news.set()


class BuiltInEngine:
    """An engine in this process. Made and used in an event loop's thread; ``core`` belongs to the engine's own thread.

    Args:
        core: what steps.
        tokenizer: for grammars.
    """

    def __init__(self, core: Core, tokenizer: Any) -> None:
        self._core = core
        self._loop = asyncio.get_running_loop()
        self._commands: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._streams: dict[Request, BuiltInStream] = {}  # the engine's thread's
        self._open: set[BuiltInStream] = set()  # the event loop's
        self._asked: set[asyncio.Future[None]] = set()  # the event loop's: what the engine's thread is to do
        self._news = asyncio.Event()  # a request has ended
        self._grammars = GrammarCompiler(tokenizer, core.limits.vocab_size)
        self._adapters = AdapterTable(core.slots.count if core.slots else 0)
        self._stats = core.stats()
        self._closing, self._failure = False, ""
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def limits(self) -> Limits:
        return self._core.limits

    @property
    def failure(self) -> str | None:
        return self._failure or None

    def stats(self) -> Stats:
        return self._stats

    def submit(
        self, ids: Sequence[int], sampling: Sampling, *, adapter: str | None = None, priority: int = 5
    ) -> BuiltInStream:
        """See ``protocol.Engine.submit``."""
        self._check_working()
        check_prompt(ids, self.limits)
        loaded = None if adapter is None else self._adapters.find(adapter)
        matcher = None if sampling.grammar is None else sampling.grammar.compiled.copy()
        stream = BuiltInStream(self, loaded)
        slot, root = (0, b"") if loaded is None else (loaded.slot, loaded.key.encode())

        def add() -> None:
            stream.request = self._core.add(ids, sampling, matcher=matcher, slot=slot, root=root, priority=priority)
            self._streams[stream.request] = stream

        if loaded is not None:
            loaded.users += 1
        self._open.add(stream)
        self._give(add)
        return stream

    async def compile(self, grammar: Grammar) -> Grammar:
        """See ``protocol.Engine.compile``."""
        return await self._grammars.compiled(grammar)

    def forget(self, stream: BuiltInStream) -> None:
        """End a request from outside."""

        def abort() -> None:
            if stream.request is not None and self._streams.pop(stream.request, None) is not None:
                self._core.abort(stream.request)

        self._close(stream)
        self._give(abort)

    async def add_adapter(self, name: str, path: str) -> None:
        """See ``protocol.Engine.add_adapter``."""
        self._check_working()
        loaded, slots = self._adapters.reserve(name), self._core.slots
        assert slots is not None
        try:
            adapter = await asyncio.to_thread(read_adapter, Path(path), slots.model.config)
            await self._ask(lambda: slots.write(loaded.slot, adapter))
        except BaseException:
            self._adapters.cancel(name, loaded)
            raise
        self._adapters.commit(name, loaded)

    async def remove_adapter(self, name: str) -> None:
        """See ``protocol.Engine.remove_adapter``."""
        loaded = self._adapters.remove(name)
        while loaded.users:
            self._news.clear()
            await self._news.wait()
        self._adapters.give_back(loaded)

    def adapters(self) -> list[str]:
        """See ``protocol.Engine.adapters``."""
        return self._adapters.names()

    async def stop(self) -> None:
        """See ``protocol.Engine.stop``."""
        self._closing = True
        for stream in list(self._open):
            stream.abort()
        self._refuse_asked()
        with self._wake:
            self._commands.append(self._quit)
            self._wake.notify()
        await asyncio.to_thread(self._thread.join)

    def _check_working(self) -> None:
        if self._failure or self._closing:
            raise self._ended()

    def _ended(self) -> EngineError:
        return EngineError(self._failure or "the engine takes nothing any more: it is being stopped")

    def _refuse_asked(self) -> None:
        """End the wait for what the engine's thread will not do any more."""
        for done in self._asked:
            _settle(done, self._ended())

    def _close(self, stream: BuiltInStream) -> None:
        if stream not in self._open:
            return
        self._open.remove(stream)
        if stream.adapter is not None:
            stream.adapter.users -= 1
        self._news.set()

    def _give(self, command: Callable[[], None]) -> None:
        with self._wake:
            self._commands.append(command)
            self._wake.notify()

    async def _ask(self, command: Callable[[], None]) -> None:
        """Let the engine's thread do it between two steps. Raises EngineError if it never will."""
        self._check_working()
        done: asyncio.Future[None] = self._loop.create_future()

        def answer() -> None:
            try:
                command()
            except Exception as error:
                self._loop.call_soon_threadsafe(_settle, done, error)
            else:
                self._loop.call_soon_threadsafe(_settle, done, None)

        self._asked.add(done)
        try:
            self._give(answer)
            await done
        finally:
            self._asked.remove(done)

    # The engine's thread from here on.

    def _run(self) -> None:
        try:
            self._core.warm_up()
            while True:
                with self._wake:
                    while not self._commands and not self._core.scheduler.busy:
                        self._wake.wait()
                while self._commands:
                    self._commands.popleft()()
                self._publish(self._core.step())
        except _QuitError:
            return
        except Exception as error:
            _log.exception("the engine failed")
            self._loop.call_soon_threadsafe(self._fail, f"the engine failed: {type(error).__name__}: {error}")

    def _quit(self) -> None:
        raise _QuitError

    def _publish(self, events: list[tuple[Request, Event]]) -> None:
        """Hand a step's events over in one go."""
        news = [(self._streams[request], event) for request, event in events]
        for request, event in events:
            if event.finish is not None:
                del self._streams[request]
        self._loop.call_soon_threadsafe(self._deliver, news, self._core.stats())

    def _deliver(self, news: list[tuple[BuiltInStream, Event]], stats: Stats) -> None:
        self._stats = stats
        for stream, event in news:
            stream.put(event)
            if event.finish is not None:
                self._close(stream)

    def _fail(self, message: str) -> None:
        self._failure = message
        for stream in list(self._open):
            stream.wake()
            self._close(stream)
        self._refuse_asked()


def _settle(done: asyncio.Future[None], error: Exception | None) -> None:
    """In the event loop's thread; nothing if whoever waited has gone."""
    if done.done():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)


class _QuitError(Exception):
    """Ends the engine's thread."""
