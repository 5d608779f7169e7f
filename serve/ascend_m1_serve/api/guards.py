"""What stands before every route, as ASGI middleware: size of bodies, API key, one log line for each request."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import time
import uuid
from typing import Any
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..logs import FIELDS
from .errors import ApiError, error_response

access = logging.getLogger("ascend_m1_serve.access")
# Without a key: for people, probes and monitors. To read only: POST / generates.
OPEN_PATHS = {"/", "/health", "/ready", "/v2/health/live", "/v2/health/ready", "/metrics"}
READING = {"GET", "HEAD"}
STOP_PATH = "/stopService"  # MindIE stops by GET
DROPPED = 64 * 2**20  # bytes of a body that is too large: read before it is refused
NOTES = "ascend_m1"  # of a request, in its scope: what a route adds to the log line


class LimitBodies:
    """Refuses a body of more than ``limit`` bytes, announced or not, and one that takes longer than ``seconds``.

    Of one that is too large ``DROPPED`` bytes are read and forgotten first: a client that is still sending when the
    connection is closed does not see the answer. Not of one that waits for leave to send, or announces more.
    """

    def __init__(self, app: ASGIApp, limit: int, seconds: float) -> None:
        self._app, self._limit, self._seconds = app, limit, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        announced = headers.get(b"content-length", b"0")
        size = int(announced) if announced.isdigit() else 0
        coming = size <= DROPPED and headers.get(b"expect", b"").lower() != b"100-continue"
        seen, whole, end = 0, False, time.monotonic() + self._seconds

        async def counted() -> Message:
            nonlocal seen, whole
            if size > self._limit and not coming:  # told to the route that reads, which knows its family's form
                raise self._too_large()
            if whole:  # what comes now is that the client goes away
                return await receive()
            while True:
                try:
                    message = await asyncio.wait_for(receive(), max(0, end - time.monotonic()))
                except asyncio.TimeoutError:
                    raise ApiError(408, f"the body did not come within {self._seconds} s: send it faster") from None
                whole = not message.get("more_body", False)
                seen += len(message.get("body", b""))
                if max(size, seen) <= self._limit:
                    return message
                if whole or seen > DROPPED:
                    raise self._too_large()

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


class RefuseOtherPages:
    """Answers 403 to requests with an effect that a browser sends for a page of another site, which needs no leave.

    A browser tells by ``Sec-Fetch-Site``; an older one, or over plain HTTP to another machine, by ``Origin`` alone,
    which is then held against ``Host``. Where only this machine is listened to, ``Host`` must be a name of it: a page
    can have its own name lead here. Other clients send neither header and are not asked for more.
    """

    def __init__(self, app: ASGIApp, local: bool) -> None:
        self._app, self._local = app, local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._allowed(scope):
            text = "asked by a page of another site: use this server's own, set an API key, or let the proxy keep Host"
            await error_response(ApiError(403, text))(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _allowed(self, scope: Scope) -> bool:
        reading = scope["method"] in READING
        if reading and scope["path"] != STOP_PATH:
            return True
        headers = {name: value.decode("latin-1").lower() for name, value in scope["headers"]}
        site, origin, host = (headers.get(name) for name in (b"sec-fetch-site", b"origin", b"host"))
        if site is not None:
            return site in ("same-origin", "none")  # none: the user's own doing
        if origin is None and not reading:
            return True
        own = origin is None or origin.partition("://")[2] == host
        return own and (not self._local or _names_this_machine(host or ""))


def _names_this_machine(host: str) -> bool:
    """Whether a Host header is an address, which no page can claim, or localhost."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")
    return True


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
