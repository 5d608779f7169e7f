"""What MindIE's families share: settings, error forms, sampling, and waiting with a limit."""

from __future__ import annotations

import asyncio
import functools
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from ascend_m1.errors import AscendM1Error

from ..answer import Answer, Piece, Reason
from ..errors import BusyError, EngineError, UnknownModelError
from ..front import Asked, Front
from ..protocol import Sampling
from . import sse
from .errors import ApiError, as_api_error

REASONS: dict[Reason, str] = {
    "stop_token": "eos_token",
    "stop_string": "stop_sequence",
    "length": "length",
    "abort": "abort",
}
PLATFORM = "MindIE Server"  # clients compare it
DEFAULT_NEW_TOKENS = 20  # where a family calls them max_new_tokens
_PHRASES = {status.value: status.phrase for status in HTTPStatus}  # not 499: that client has gone
Handler = Callable[..., Awaitable[Response]]


@dataclass(frozen=True)
class MindieSettings:
    """Of config.json, for requests.

    Attributes:
        token_timeout, whole_timeout: seconds. full_text: events repeat the answer so far.
        monitor: whether /metrics answers.
    """

    token_timeout: float = 600
    whole_timeout: float = 600
    full_text: bool = False
    monitor: bool = True
    world_size: int = 1
    prefill_tokens: int = 8192
    prefill_batch: int = 50
    cpu_memory: int = 0
    npu_memory: int = -1
    folder: str = ""


class MindieError(Exception):
    """An answer other than 200: status, type and message."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


def as_mindie_error(error: Exception) -> MindieError:
    """What these families say of an exception."""
    if isinstance(error, MindieError):
        return error
    if isinstance(error, UnknownModelError):
        return MindieError(404, "NotFoundError", str(error))
    if isinstance(error, AscendM1Error):
        return MindieError(422, "Input Validation Error", str(error))
    if isinstance(error, BusyError):
        if error.stopping:
            return MindieError(503, "Service Unavailable", "The service has been stopped.")
        return MindieError(429, "Too Many Requests", str(error))
    if isinstance(error, EngineError):
        return MindieError(500, "Incomplete Generation", str(error))
    if isinstance(error, ApiError) and error.status == 400:
        return MindieError(422, "Input Validation Error", str(error))
    found = as_api_error(error)  # logs what nobody expected
    kind = "Incomplete Generation" if found.status >= 500 else _PHRASES.get(found.status, "Bad Request")
    return MindieError(found.status, kind, str(found))


def guarded(handler: Handler) -> Handler:
    """A route whose errors have MindIE's form."""

    @functools.wraps(handler)
    async def run(*args: Any, **kwargs: Any) -> Response:
        try:
            return await handler(*args, **kwargs)
        except Exception as error:
            return error_response(error)

    return run


def error_response(error: Exception) -> Response:
    """{"error", "error_type"}; a body that is too large has a form of its own."""
    if isinstance(error, ApiError) and error.status == 413:
        return answered({"message": f"Request body too large. {error}"}, 413)
    found = as_mindie_error(error)
    headers = {"Retry-After": "1"} if found.status in (429, 503) else None
    return answered({"error": str(found), "error_type": found.kind}, found.status, headers)


def answered(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A whole answer, after which the connection is closed."""
    return Response(
        sse.dump(content), status, {"Connection": "close", **(headers or {})}, media_type="application/json"
    )


def sampling_of(front: Front, values: Mapping[str, Any], length: int | None, **rest: Any) -> Sampling:
    """The engine's options for a family's values. A sampled request without a seed is given one, to be told of it."""
    top_k = values.get("top_k")
    asked = Asked(
        temperature=values.get("temperature"),
        top_k=None if top_k is None else max(0, top_k),
        top_p=values.get("top_p"),
        repetition_penalty=values.get("repetition_penalty"),
        sample=values.get("do_sample"),
    )
    seed = values.get("seed", secrets.randbelow(2**63)) % 2**63
    return front.sampling(asked, seed=seed, **({} if length is None else {"max_tokens": length}), **rest)


def reader(settings: MindieSettings, seconds: float | None) -> Callable[[Answer], AsyncIterator[Piece]]:
    """How a request's answers are read: within the server's and the request's seconds, which all of them share and
    which begin now, without a pause longer than allowed."""
    whole = settings.whole_timeout if seconds is None else min(seconds, settings.whole_timeout)
    end = time.monotonic() + whole

    async def read(answer: Answer) -> AsyncIterator[Piece]:
        while True:
            try:
                piece = await asyncio.wait_for(anext(answer), min(end - time.monotonic(), settings.token_timeout))
            except StopAsyncIteration:
                return
            except asyncio.TimeoutError:
                text = f"Engine callback timeout: {len(answer.tokens)} tokens in {whole} s"
                raise ApiError(500, text) from None
            yield piece

    return read


async def finished(
    request: Request, front: Front, answers: list[Answer], read: Callable[[Answer], AsyncIterator[Piece]]
) -> bool:
    """Whether the answers came to their end; not: the client has gone."""
    return await sse.whole(request, front, answers, read) is not None
