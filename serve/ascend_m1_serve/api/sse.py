"""Server-sent events out of answers that come at the same time; whoever goes away ends them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from ..answer import Answer, Piece
from ..front import Front
from .guards import NOTES

DONE = b"data: [DONE]\n\n"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
MEDIA = "text/event-stream"


class Events(StreamingResponse):
    """Events out of answers, which are given back with it however it ends: before the first event, too."""

    def __init__(
        self, front: Front, answers: Sequence[Answer], events: AsyncGenerator[bytes, None], media_type: str = MEDIA
    ) -> None:
        super().__init__(events, media_type=media_type, headers=HEADERS if media_type == MEDIA else None)
        self._front, self._answers, self._events = front, answers, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            note_usage(scope, self._answers)
            self._front.close(self._answers)
            await self._events.aclose()


def note_usage(scope: Scope, answers: Sequence[Answer]) -> None:
    """For the log line."""
    notes = scope[NOTES]
    notes["prompt_tokens"] = sum(len(answer.prompt) for answer in answers)
    notes["generated_tokens"] = sum(len(answer.tokens) for answer in answers)


def event(content: dict[str, Any]) -> bytes:
    """One event."""
    return b"data: " + dump(content) + b"\n\n"


def dump(content: Any) -> bytes:
    """Compact JSON as UTF-8."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


async def merged(
    answers: Sequence[Answer], read: Callable[[Answer], AsyncIterator[Piece]] = aiter
) -> AsyncIterator[tuple[int, Piece]]:
    """The pieces of all answers as they come, with the answer's index. Raises EngineError.

    Args:
        read: see ``whole``.
    """
    if len(answers) == 1:
        async for piece in read(answers[0]):
            yield 0, piece
        return
    news: asyncio.Queue[tuple[int, Piece | Exception | None]] = asyncio.Queue()

    async def listen(index: int) -> None:
        try:
            async for piece in read(answers[index]):
                news.put_nowait((index, piece))
            news.put_nowait((index, None))
        except Exception as error:
            news.put_nowait((index, error))

    tasks = [asyncio.create_task(listen(index)) for index in range(len(answers))]
    try:
        left = len(answers)
        while left:
            index, found = await news.get()
            if isinstance(found, Exception):
                raise found
            if found is None:
                left -= 1
            else:
                yield index, found
    finally:
        for task in tasks:
            task.cancel()


async def whole(
    request: Request, front: Front, answers: Sequence[Answer], read: Callable[[Answer], AsyncIterator[Piece]] = aiter
) -> list[list[Piece]] | None:
    """All pieces of each answer; None: the client has gone, and the answers were ended. Raises EngineError.

    Args:
        read: how the pieces of an answer are waited for.
    """

    async def collect(answer: Answer) -> list[Piece]:
        return [piece async for piece in read(answer)]

    async def collect_all() -> list[list[Piece]] | None:
        return await asyncio.gather(*map(collect, answers))

    work, gone = asyncio.create_task(collect_all()), asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait([work, gone], return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else None
    finally:
        work.cancel()
        gone.cancel()
        note_usage(request.scope, answers)
        front.close(answers)


async def _disconnected(request: Request) -> list[list[Piece]] | None:
    """Returns when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    return None
