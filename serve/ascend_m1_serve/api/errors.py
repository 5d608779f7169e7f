"""What went wrong, in the shape of OpenAI's API: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import BaseRoute, Match

from ascend_m1.errors import AscendM1Error

from ..errors import BusyError, EngineError, UnknownModelError

_log = logging.getLogger(__name__)
RETRY_SECONDS = 1
_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An answer other than 200.

    Attributes:
        param: the field that is wrong.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """As OpenAI writes it."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def as_api_error(error: Exception) -> ApiError:
    """What a client is told of an exception that a request may raise."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UnknownModelError):
        return ApiError(404, str(error), "model", "model_not_found")
    if isinstance(error, AscendM1Error):
        return ApiError(400, str(error))
    if isinstance(error, BusyError):
        return ApiError(503 if error.stopping else 429, str(error))
    if isinstance(error, EngineError):
        return ApiError(503, str(error))
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        return ApiError(400, f"{where}: {first['msg']}" if where else first["msg"], where or None)
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail))
    _log.error("a request failed", exc_info=error)
    return ApiError(500, f"the server failed ({type(error).__name__}): its log says more")


def error_response(error: Exception) -> Response:
    """The whole answer."""
    found = as_api_error(error)
    headers = {"Retry-After": str(RETRY_SECONDS)} if found.status in (429, 503) else {}
    if found.status == 408:  # the rest of the body is not waited for
        headers["Connection"] = "close"
    # ASCII alone: a message may repeat a text that is not valid Unicode.
    return JSONResponse(
        error_body(found.status, str(found).encode("utf-8", "replace").decode(), found.param, found.code),
        found.status,
        headers,
    )


def _allowed(request: Request) -> list[str]:
    """Methods of the path, which may belong to several routes."""
    tried = [(method, {**request.scope, "method": method}) for method in ("GET", "POST")]
    return [name for name, scope in tried if any(r.matches(scope)[0] is Match.FULL for r in request.app.routes)]


def install(app: FastAPI, others: Collection[BaseRoute], form: Callable[[Exception], Response]) -> None:
    """Every error that a request may raise in that shape; for others see ``guards.AnswerFailures``.

    Args:
        others: routes whose errors have another ``form``, also where a method is asked for that they have not.
    """

    def handle(request: Request, error: Exception) -> Response:
        own = not any(route.matches(request.scope)[0] is Match.PARTIAL for route in others)
        response = error_response(error) if own else form(error)
        if response.status_code == 405:
            response.headers["Allow"] = ", ".join(_allowed(request))
        return response

    for kind in (ApiError, AscendM1Error, BusyError, EngineError, ValidationError, HTTPException):
        app.add_exception_handler(kind, handle)
