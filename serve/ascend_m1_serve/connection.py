"""A client's connection: how long the head of a request may take, and how many there may be."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\nContent-Type: text/plain\r\n"
    b"Content-Length: 21\r\n\r\ntoo many connections\n"
)


class Connection(H11Protocol):
    """uvicorn's, which waits for a first request, and for the rest of any request's head, without end.

    Its limit_concurrency counts connections that ask nothing, and then refuses those that do.

    Args:
        seconds: in which the head of a request must come, and what is left of a body after its answer.
        most: connections to a server; one more is told so and closed.
    """

    def __init__(self, *args: Any, seconds: float, most: int, **more: Any) -> None:
        super().__init__(*args, **more)
        self._seconds, self._most = seconds, most
        self._waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._most:
            transport.write(_FULL)
            transport.close()
        else:
            self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)  # which ends uvicorn's own wait, for the next request
        if self.cycle is not None and not self.cycle.response_complete:
            self._end_wait()
        elif self._waiting is None:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_wait()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._waiting = self.loop.call_later(self._seconds, self.timeout_keep_alive_handler)

    def _end_wait(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
