"""One request's events out of vLLM."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from vllm.outputs import RequestOutput

from ascend_m1.errors import InputError

from .engine.adapter_table import Loaded
from .errors import EngineError
from .protocol import Event, Logprob


class VllmStream:
    """The events of one request; a task reads them from vLLM whether or not they are awaited."""

    def __init__(self, closed: Callable[[VllmStream], None], adapter: Loaded | None, logprobs: int) -> None:
        self._closed, self.adapter, self._logprobs = closed, adapter, logprobs
        self._news: asyncio.Queue[Event | Exception | None] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._ended = False

    def start(self, outputs: AsyncIterator[RequestOutput]) -> None:
        """Begin to read."""
        self._task = asyncio.create_task(self._read(outputs))
        self._task.add_done_callback(lambda task: self._closed(self))  # also of one that was cancelled before it began

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        if self._ended:
            raise StopAsyncIteration
        event = await self._news.get()
        if event is None:
            self._ended = True
            raise StopAsyncIteration
        if isinstance(event, Exception):
            self._ended = True
            raise event
        self._ended = event.finish is not None
        return event

    def abort(self) -> None:
        if not self._ended:
            self._ended = True
            self._news.put_nowait(None)  # for whoever waits
            if self._task is not None:
                self._task.cancel()  # vLLM ends the request when its reader goes away

    async def _read(self, outputs: AsyncIterator[RequestOutput]) -> None:
        try:
            async for output in outputs:
                event = _event(output, self._logprobs)
                if event is not None:
                    self._news.put_nowait(event)
        except ValueError as error:  # what vLLM does not accept of a request
            self._news.put_nowait(InputError(" ".join(str(error).split())))
        except Exception as error:
            self._news.put_nowait(EngineError(f"vLLM failed: {type(error).__name__}: {error}"))


def _event(output: RequestOutput, top: int) -> Event | None:
    """What is new; None: nothing. vLLM gives the chosen token and ``top`` others, one fewer if it is one of them."""
    (sample,) = output.outputs
    finish = {None: None, "stop": "stop", "length": "length"}.get(sample.finish_reason, "abort")
    if not sample.token_ids and finish is None:
        return None
    rows = []
    for token, row in zip(sample.token_ids, sample.logprobs or [], strict=False):
        found = {token: Logprob(token, entry.logprob, entry.rank or 0) for token, entry in row.items()}
        likeliest = sorted(found.values(), key=lambda entry: entry.rank)[:top]
        rows.append((found[token], *likeliest))
    times = output.metrics
    queued = max(0.0, times.scheduled_ts - times.queued_ts) if times is not None else 0.0
    return Event(tuple(sample.token_ids), tuple(rows), finish, output.num_cached_tokens or 0, queued)  # type: ignore[arg-type]
