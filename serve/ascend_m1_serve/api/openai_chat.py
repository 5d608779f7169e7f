"""POST /v1/chat/completions."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from ascend_m1.errors import InputError

from ..answer import Answer, Piece
from ..front import Front
from ..protocol import Logprob
from ..text import token_text
from . import sse
from .bodies import read
from .choices import likeliest
from .mindie_common import MindieSettings
from .openai_common import REASONS, failure, head, reading, sampling_of, submitted, usage, written
from .openai_schema import ChatRequest
from .openapi import OPENAI_ERRORS, members, model_body, operation

CHUNK = "chat.completion.chunk"
ANSWER = members(id="string", object="string", created="integer", model="string", choices="array", usage="object")


def routes(front: Front, settings: MindieSettings | None) -> APIRouter:
    """The route; ``settings`` of a config.json."""
    router, path = APIRouter(responses=OPENAI_ERRORS), "/v1/chat/completions"

    @router.post(path, **operation(model_body(ChatRequest, path), ANSWER, [sse.MEDIA]))
    async def chat(request: Request) -> Response:
        asked = await read(request, ChatRequest)
        model = front.name if asked.model is None else asked.model
        adapter = front.adapter(model)
        ids = await prompt_ids(front, asked)
        top = asked.top_logprobs or 0
        if top and not asked.logprobs:
            raise InputError("top_logprobs: set logprobs to true with it")
        most = asked.max_completion_tokens or asked.max_tokens
        sampling = await sampling_of(front, asked, most, top if asked.logprobs else None)
        answers = submitted(front, asked, ids, sampling, adapter)
        if asked.stream:
            events = stream(front, asked, answers, head(CHUNK, "chatcmpl", model), settings)
            return sse.Events(front, answers, events)
        pieces = await sse.whole(request, front, answers, reading(settings))
        if pieces is None:
            return Response(status_code=499)
        chosen = likeliest(answers, pieces, asked.candidates(), asked.n)
        content = head("chat.completion", "chatcmpl", model)
        content["choices"] = [choice(front, index, *pair, asked) for index, pair in enumerate(chosen)]
        content["usage"] = usage([answer for answer, _ in chosen], asked.n)
        if front.tell_times:
            content |= times(chosen[0][0])
        return Response(sse.dump(content), media_type="application/json")

    return router


async def prompt_ids(front: Front, asked: ChatRequest) -> list[int]:
    """The conversation as tokens. Raises InputError, TokenizerError."""
    messages = [message.for_template() for message in asked.messages]
    if asked.tool_choice not in (None, "auto", "none"):
        raise InputError("tool_choice: only auto and none: the checkpoint's template has no form for calls of tools")
    if asked.chat_template is not None:
        raise InputError("chat_template: a template is a program, only the checkpoint's own is run: leave it out")
    template = dict(asked.chat_template_kwargs)
    reserved = template.keys() & reserved_names(front.tokenizer)
    if reserved:
        raise InputError(f"chat_template_kwargs: {min(reserved)} is set by the server: leave it out")
    if asked.tools and asked.tool_choice != "none":
        template["tools"] = asked.tools
    return await front.chat_ids(messages, **template)


def reserved_names(tokenizer: Any) -> set[str]:
    """What a request may not give to the template: options of the call, and what the template finds there itself."""
    call = inspect.signature(tokenizer.apply_chat_template).parameters
    return {*call, "messages", "raise_exception", "strftime_now", *tokenizer.special_tokens_map}


def choice(front: Front, index: int, answer: Answer, pieces: Sequence[Piece], asked: ChatRequest) -> dict[str, Any]:
    """A whole answer."""
    reason = answer.reason or "abort"
    return {
        "index": index,
        "message": {"role": "assistant", "content": answer.text, "tool_calls": []},
        "logprobs": logprobs(front, [entry for piece in pieces for entry in piece.logprobs], asked),
        "finish_reason": REASONS[reason],
        "stop_reason": answer.stop,
    }


def times(answer: Answer) -> dict[str, Any]:
    """Milliseconds to the first token, and of each one after it, as MindIE's benchmark reads them."""
    taken = answer.times.milliseconds()
    return {"prefill_time": taken[0] if taken else None, "decode_time_arr": taken[1:]}


async def stream(
    front: Front,
    asked: ChatRequest,
    answers: list[Answer],
    first: dict[str, Any],
    settings: MindieSettings | None,
) -> AsyncGenerator[bytes, None]:
    """Events, the end mark last. With a config.json an answer's last one has its usage, perhaps its whole text."""

    def chunk(index: int, delta: dict[str, Any], reason: str | None = None, probabilities: Any = None) -> bytes:
        part = {"index": index, "delta": delta, "logprobs": probabilities, "finish_reason": reason}
        event = first | {"choices": [part]}
        if settings is not None and reason is not None:
            event["usage"] = usage([answers[index]], 1)
            if settings.full_text:
                event["full_text"] = answers[index].text
        return sse.event(event)

    try:
        for index in range(len(answers)):
            yield chunk(index, {"role": "assistant", "content": ""})
        async for index, piece in sse.merged(answers, reading(settings)):
            if piece.text or piece.logprobs:
                yield chunk(index, {"content": piece.text}, probabilities=logprobs(front, piece.logprobs, asked))
            if piece.reason is not None:
                yield chunk(index, {}, REASONS[piece.reason])
        if asked.stream_options is not None and asked.stream_options.include_usage:
            yield sse.event(first | {"choices": [], "usage": usage(answers, asked.n)})
        yield sse.DONE
    except Exception as error:
        yield failure(error)


def logprobs(front: Front, tokens: Sequence[tuple[Logprob, ...]], asked: ChatRequest) -> dict[str, Any] | None:
    """Of each token, and the likeliest in its place."""
    if not asked.logprobs:
        return None
    top = asked.top_logprobs or 0
    rows = [
        entry(front, chosen) | {"top_logprobs": [entry(front, other) for other in others[:top]]}
        for chosen, *others in tokens
    ]
    return {"content": rows}


def entry(front: Front, found: Logprob) -> dict[str, Any]:
    """A token."""
    text, data = token_text(front.tokenizer, found.token)
    return {"token": text, "logprob": written(found.logprob), "bytes": data}
