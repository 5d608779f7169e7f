"""Requests' bodies as JSON objects."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from .errors import ApiError

Schema = TypeVar("Schema", bound=BaseModel)


async def read_object(request: Request) -> dict[str, Any]:
    """Raises ApiError if the body is not a JSON object."""
    try:
        data = await request.body()
    except ClientDisconnect:
        raise ApiError(499, "the client went away before its body had come") from None
    if not data:
        raise ApiError(400, "the body is empty: send a JSON object", code="json_invalid")
    try:
        content = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        message = f"the body is not valid UTF-8 at byte {error.start}: send JSON as UTF-8"
        raise ApiError(400, message, code="json_invalid") from None
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else "nested too deeply"
        raise ApiError(400, f"the body is not valid JSON: {reason}", code="json_invalid") from None
    if not isinstance(content, dict):
        raise ApiError(400, "the body is not a JSON object", code="json_invalid")
    return content


async def read(request: Request, schema: type[Schema]) -> Schema:
    """The body as a request. Raises ApiError, pydantic's ValidationError."""
    content = {name: value for name, value in (await read_object(request)).items() if value is not None}
    return schema.model_validate(content, strict=True)
