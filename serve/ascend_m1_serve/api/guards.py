"""What stands before every route, as ASGI middleware: size of bodies, API key, one log line for each request."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
import uuid
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..logs import FIELDS
from .errors import ApiError, error_response

access = logging.getLogger("ascend_m1_serve.access")
# Without a key: for people, probes and monitors. To read only: POST / generates.
OPEN_PATHS = {"/", "/health", "/ready", "/metrics"}
READING = {"GET", "HEAD"}
NOTES = "ascend_m1"  # of a request, in its scope: what a route adds to the log line


class LimitBodies:
    """Refuses a body of more than ``limit`` bytes, announced or not, and one that takes longer than ``seconds``."""

    def __init__(self, app: ASGIApp, limit: int, seconds: float) -> None:
        self._app, self._limit, self._seconds = app, limit, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        too_large = announced.isdigit() and int(announced) > self._limit
        seen, whole, end = 0, False, time.monotonic() + self._seconds

        async def counted() -> Message:
            nonlocal seen, whole
            if too_large:  # told to the route that reads, which knows its family's form of an error
                raise self._too_large()
            if whole:  # what comes now is that the client goes away
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0, end - time.monotonic()))
            except asyncio.TimeoutError:
                raise ApiError(408, f"the body did not come within {self._seconds} s: send it faster") from None
            whole = not message.get("more_body", False)
            seen += len(message.get("body", b""))
            if seen > self._limit:
                raise self._too_large()
            return message

        await self._app(scope, counted, send)

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is larger than {self._limit} bytes: send less, or raise the server's limit")


class RequireKey:
    """Asks for ``Authorization: Bearer KEY``."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app, self._key = app, key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not (scope["method"] in READING and scope["path"] in OPEN_PATHS):
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, b"Bearer " + self._key):
                error = ApiError(401, "wrong or no API key: send the header Authorization: Bearer KEY")
                await error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


class AnswerFailures:
    """Answers 500 where something failed that nobody expected.

    A handler of Starlette's for Exception would raise it again, and the connection would be closed without a word.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception as error:
            if begun or scope["type"] != "http":
                raise
            await error_response(error)(scope, receive, send)


class LogRequests:
    """One line of JSON for each request, without what was asked or answered; gives it an id, which is answered too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        notes: dict[str, Any] = {}
        scope[NOTES] = notes
        identity, start, status = uuid.uuid4().hex, time.monotonic(), 499  # 499: the client went away before an answer

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", identity.encode())]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            line = {"id": identity, "method": scope["method"], "path": scope["path"], "status": status}
            seconds = round(time.monotonic() - start, 4)
            access.info("request", extra={FIELDS: {**line, "seconds": seconds, **notes}})
