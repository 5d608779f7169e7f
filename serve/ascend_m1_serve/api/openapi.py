"""What the OpenAPI description says beside what FastAPI finds out: bodies, forms of answers and of errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from ..mindie.requests import Parameter

Schema = dict[str, Any]
_TYPES = {"float": "number"}  # other kinds are called the same
TEXT: Schema = {"type": "string", "minLength": 1}
IDS: Schema = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
FLAG: Schema = {"type": ["boolean", "null"]}


def members(**types: Any) -> Schema:
    """An object with at least these members: their types, or schemas."""
    shown = {name: kind if isinstance(kind, dict) else {"type": kind} for name, kind in types.items()}
    return {"type": "object", "required": list(shown), "properties": shown}


def _errors(text: str, schema: Schema) -> dict[int | str, dict[str, Any]]:
    return {"default": {"description": text, "content": {"application/json": {"schema": schema}}}}


OPENAI_ERRORS = _errors(
    "an error",
    members(error=members(message="string", type="string", param=["string", "null"], code=["string", "null"])),
)
MINDIE_ERRORS = _errors(
    "an error; a body that is too large has a form of its own, and an API key is asked for in OpenAI's",
    {"anyOf": [members(error="string", error_type="string"), members(message="string"), members(error="object")]},
)


def operation(body: Schema | None = None, answer: Schema | None = None, others: Sequence[str] = ()) -> dict[str, Any]:
    """Arguments of a route.

    Args:
        body: of the request. answer: of the whole answer, as JSON; None: it has no body.
        others: content types of streamed answers.
    """
    kinds = {} if answer is None else {"application/json": {"schema": answer}}
    found: dict[str, Any] = {"responses": {200: {"content": kinds | {kind: {} for kind in others}}}}
    if body is not None:
        found["openapi_extra"] = {"requestBody": {"required": True, "content": {"application/json": {"schema": body}}}}
    return found


def model_body(schema: type[BaseModel], path: str) -> Schema:
    """Of a pydantic model that ``path`` takes by POST; its definitions are found from there."""
    place = f"#/paths/{path.replace('/', '~1')}/post/requestBody/content/application~1json/schema/$defs/"
    return schema.model_json_schema(ref_template=place + "{model}")


def family_body(family: Mapping[str, Parameter], nested: bool, **fields: Schema) -> Schema:
    """Of a MindIE family: the fields that must be there, and its parameters beside them or in "parameters"."""
    parameters = {name: _parameter(rule) for name, rule in family.items()}
    if nested:
        parameters = {"parameters": {"type": ["object", "null"], "properties": parameters}}
    return {"type": "object", "required": list(fields), "properties": fields | parameters}


def _parameter(rule: Parameter) -> Schema:
    schema: Schema = {"type": [_TYPES.get(rule.kind, rule.kind), "null"]}
    if rule.pattern is not None:
        schema["pattern"] = f"^{rule.pattern}$"
    if rule.besides is None and not math.isinf(rule.low):
        schema["exclusiveMinimum" if rule.open_low else "minimum"] = rule.low
    if not math.isinf(rule.high):
        schema["exclusiveMaximum" if rule.open_high else "maximum"] = rule.high
    return schema
