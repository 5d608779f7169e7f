"""POST /infer, /infer_token and /v1/tokenizer: MindIE's own family."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from ascend_m1.errors import InputError

from ..answer import Answer
from ..front import Front
from ..mindie import requests as form
from ..text import Detokenizer
from . import sse
from .bodies import read_object
from .mindie_common import (
    DEFAULT_NEW_TOKENS,
    REASONS,
    MindieError,
    MindieSettings,
    answered,
    as_mindie_error,
    finished,
    guarded,
    reader,
    sampling_of,
)
from .openapi import FLAG, IDS, MINDIE_ERRORS, TEXT, Schema, family_body, members, operation

ANSWER = members(generated_text="string", details="object")
TOKENIZER_BODY: Schema = {"type": "object", "required": ["inputs"], "properties": {"inputs": TEXT, "do_decode": FLAG}}


def routes(front: Front, settings: MindieSettings) -> APIRouter:
    """The routes."""
    router = APIRouter(responses=MINDIE_ERRORS)

    @router.post("/infer", **operation(family_body(form.OWN, True, inputs=TEXT), ANSWER, [sse.MEDIA]))
    @guarded
    async def infer(request: Request) -> Response:
        content = await read_object(request)
        _one_input(content)
        return await run(request, front, settings, content, await front.text_ids(form.text("inputs", content)))

    @router.post("/infer_token", **operation(family_body(form.OWN, True, input_id=IDS), ANSWER, [sse.MEDIA]))
    @guarded
    async def infer_token(request: Request) -> Response:
        content = await read_object(request)
        _one_input(content)
        ids = form.token_ids("input_id", content.get("input_id"), front.engine.limits.vocab_size)
        return await run(request, front, settings, content, ids)

    @router.post("/v1/tokenizer", **operation(TOKENIZER_BODY, members(token_number="integer", tokens="array")))
    @guarded
    async def tokenizer(request: Request) -> Response:
        content = await read_object(request)
        ids = await front.text_ids(form.text("inputs", content))
        wanted = content.get("do_decode")
        decode = True if wanted is None else form.value("do_decode", wanted, form.Parameter("boolean"))
        tokens = await asyncio.to_thread(pieces_of, front.tokenizer, ids) if decode else []
        return answered({"token_number": len(ids), "tokens": tokens})

    @router.get("/dresult")
    @guarded
    async def dresult() -> Response:
        raise MindieError(400, "Bad Request", "prefill and decode run on one server here: there is nothing to fetch")

    return router


def pieces_of(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token; those of one character together."""
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=False)
    pieces = [detokenizer.add([index]) for index in ids] + [detokenizer.finish()]
    return [piece for piece in pieces if piece]


def _one_input(content: Mapping[str, Any]) -> None:
    given = [content.get(name) is not None for name in ("inputs", "input_id")]
    if all(given):
        raise InputError("Input conflict.")
    if not any(given):
        raise InputError("Not found inputs.")


async def run(
    request: Request, front: Front, settings: MindieSettings, content: Mapping[str, Any], ids: list[int]
) -> Response:
    """The answer to either form of prompt."""
    values = form.values(form.parameters(content), form.OWN)
    stream = content.get("stream")
    stream = False if stream is None else form.value("stream", stream, form.Parameter("boolean"))
    sampling = sampling_of(front, values, values.get("max_new_tokens", DEFAULT_NEW_TOKENS))
    seed = None if sampling.temperature == 0 else sampling.seed
    (answer,) = front.submit(ids, sampling, priority=values.get("priority", 5))
    read = reader(settings, values.get("timeout"))
    if stream:
        events = infer_events(settings, answer, bool(values.get("details")), seed, read)
        return sse.Events(front, [answer], events)
    done = await finished(request, front, [answer], read)
    if not done:
        return Response(status_code=499)
    return answered({"generated_text": answer.text, "details": details(answer, seed)})


def details(answer: Answer, seed: int | None) -> dict[str, Any]:
    """How it ended."""
    return {
        "finish_reason": REASONS[answer.reason or "abort"],
        "generated_tokens": len(answer.tokens),
        "generated_token_ids": answer.tokens,
        "seed": seed,
    }


async def infer_events(
    settings: MindieSettings, answer: Answer, full: bool, seed: int | None, read: Any
) -> AsyncGenerator[bytes, None]:
    """One for each token with its time; the last has the whole text."""
    first = True
    try:
        async for piece in read(answer):
            taken = answer.times.milliseconds()[-1] if answer.times.tokens else None
            found: dict[str, Any] = {
                "prefill_time": taken if first else None,
                "decode_time": None if first else taken,
                "token": {"id": list(piece.tokens), "text": answer.text if settings.full_text else piece.text},
            }
            first = False
            if piece.reason is not None:
                if not piece.text:
                    found["token"]["text"] = None
                found |= {"generated_text": answer.text, "details": details(answer, seed) if full else None}
            yield sse.event(found)
    except Exception as error:
        yield str(as_mindie_error(error)).encode("utf-8", "replace")
