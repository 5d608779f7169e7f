"""POST /generate (vLLM's and TGI's), / and /generate_stream (TGI's)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from ascend_m1.errors import InputError

from ..answer import Answer
from ..front import Front
from ..mindie import requests as form
from . import sse
from .bodies import read_object
from .choices import candidates_of, likeliest
from .mindie_common import (
    DEFAULT_NEW_TOKENS,
    REASONS,
    MindieSettings,
    answered,
    as_mindie_error,
    finished,
    guarded,
    reader,
    sampling_of,
)
from .openapi import MINDIE_ERRORS, TEXT, family_body, members, operation

NUL, NUL_ENDED = b"\0", "text/plain"  # no JSON as a whole
VLLM_BODY = family_body(form.VLLM, False, prompt=TEXT)
TGI_BODY = family_body(form.TGI, True, inputs=TEXT)
TGI_ANSWER = members(generated_text="string")
GENERATE_ANSWER = {"anyOf": [members(text={"type": "array", "items": {"type": "string"}}), TGI_ANSWER]}


def routes(front: Front, settings: MindieSettings) -> APIRouter:
    """The routes."""
    router = APIRouter(responses=MINDIE_ERRORS)

    @router.post("/generate", **operation({"anyOf": [VLLM_BODY, TGI_BODY]}, GENERATE_ANSWER, [NUL_ENDED]))
    @guarded
    async def generate(request: Request) -> Response:
        content = await read_object(request)
        if content.get("prompt") is not None:
            return await vllm(request, front, settings, content)
        if content.get("inputs") is None:
            raise InputError("Not found inputs or prompt.")
        return await tgi(request, front, settings, content, stream=False)

    @router.post("/generate_stream", response_class=StreamingResponse, **operation(TGI_BODY, None, [sse.MEDIA]))
    @guarded
    async def generate_stream(request: Request) -> Response:
        return await tgi(request, front, settings, await read_object(request), stream=True)

    @router.post("/", **operation(TGI_BODY, {"type": "array", "items": TGI_ANSWER}, [sse.MEDIA]))
    @guarded
    async def either(request: Request) -> Response:
        content = await read_object(request)
        stream = content.get("stream")
        stream = False if stream is None else form.value("stream", stream, form.Parameter("boolean"))
        return await tgi(request, front, settings, content, stream, listed=True)

    return router


async def vllm(request: Request, front: Front, settings: MindieSettings, content: Mapping[str, Any]) -> Response:
    """Of vLLM 0.2.6: {"text": ["prompt text"]}, or events that end with NUL."""
    prompt, values = form.text("prompt", content), form.values(content, form.VLLM)
    count = values.get("n", 1)
    candidates = candidates_of(count, values.get("best_of"), values.get("stream", False))
    if candidates > 1 and values.get("temperature", 1.0) == 0:
        raise InputError("n and best_of must be 1 where temperature is 0.")
    model = values.get("model", "None")
    tokens = content.get("stop_token_ids")
    sampling = sampling_of(
        front,
        values,
        values.get("max_tokens", front.max_new),
        presence_penalty=values.get("presence_penalty", 0.0),
        frequency_penalty=values.get("frequency_penalty", 0.0),
        stop_token_ids=frozenset(
            form.token_ids("stop_token_ids", [] if tokens is None else tokens, front.engine.limits.vocab_size)
        ),
        ignore_eos=values.get("ignore_eos", False),
        logprobs=0 if candidates > count else None,
    )
    answers = front.submit(
        await front.text_ids(prompt),
        sampling,
        adapter=None if model == "None" else front.adapter(model),
        count=candidates,
        stop=form.stops(content.get("stop")),
        include_stop=values.get("include_stop_str_in_output", False),
        skip_special_tokens=values.get("skip_special_tokens", True),
    )
    read = reader(settings, None)
    if values.get("stream", False):
        return sse.Events(front, answers, vllm_events(settings, answers, read), NUL_ENDED)
    pieces = await sse.whole(request, front, answers, read)
    if pieces is None:
        return Response(status_code=499)
    chosen = likeliest(answers, pieces, candidates, count)
    return answered({"text": [form.joined([prompt, answer.text]) for answer, _ in chosen]})


async def vllm_events(settings: MindieSettings, answers: list[Answer], read: Any) -> AsyncGenerator[bytes, None]:
    """New text of every answer in turn, each event ended by NUL; an answer without text is one event."""
    try:
        for answer in answers:
            async for piece in read(answer):
                if piece.text or (piece.reason is not None and not answer.text):
                    yield sse.dump({"text": [answer.text if settings.full_text else piece.text]}) + NUL
    except Exception as error:
        yield str(as_mindie_error(error)).encode("utf-8", "replace")


async def tgi(
    request: Request,
    front: Front,
    settings: MindieSettings,
    content: Mapping[str, Any],
    stream: bool,
    listed: bool = False,
) -> Response:
    """Of TGI 0.9.4."""
    prompt = form.text("inputs", content)
    values = form.values(form.parameters(content), form.TGI)
    if stream and values.get("decoder_input_details"):
        raise InputError("decoder_input_details must be false when streaming.")
    ids = await front.text_ids(prompt)
    cut = values.get("truncate", 0)
    ids = ids[-cut:] if cut else ids
    adapter = values.get("adapter_id", "None")
    sampling = sampling_of(front, values, values.get("max_new_tokens", DEFAULT_NEW_TOKENS))
    (answer,) = front.submit(
        ids,
        sampling,
        adapter=None if adapter == "None" else front.adapter(adapter),
        stop=form.stops(form.parameters(content).get("stop"), longest=1024),
    )
    read, seed = reader(settings, None), None if sampling.temperature == 0 else sampling.seed
    if stream:
        events = tgi_events(settings, answer, values, seed, read, prompt)
        return sse.Events(front, [answer], events)
    done = await finished(request, front, [answer], read)
    if not done:
        return Response(status_code=499)
    found: dict[str, Any] = {"generated_text": whole_text(prompt, answer, values)}
    if values.get("details") or values.get("decoder_input_details"):
        found["details"] = {
            "prompt_tokens": len(answer.prompt),
            "finish_reason": REASONS[answer.reason or "abort"],
            "generated_tokens": len(answer.tokens),
            "prefill": [token(i) for i in answer.prompt] if values.get("decoder_input_details") else [],
            "seed": seed,
            "tokens": [token(i) for i in answer.tokens],
        }
    return answered([found] if listed else found)


def whole_text(prompt: str, answer: Answer, values: Mapping[str, Any]) -> str:
    """The answer, after the prompt if that is asked for."""
    return form.joined([prompt, answer.text]) if values.get("return_full_text") else answer.text


def token(index: int) -> dict[str, Any]:
    """A token as MindIE describes it."""
    return {"id": index, "logprob": None, "special": None, "text": None}


async def tgi_events(
    settings: MindieSettings,
    answer: Answer,
    values: Mapping[str, Any],
    seed: int | None,
    read: Any,
    prompt: str,
) -> AsyncGenerator[bytes, None]:
    """One for each token; the last has the whole text and, if asked for, details. No end mark."""
    try:
        async for piece in read(answer):
            shown = answer.text if settings.full_text else piece.text
            found: dict[str, Any] = {
                "token": {"id": list(piece.tokens), "text": shown, "logprob": None, "special": None},
                "generated_text": None,
                "details": None,
            }
            if piece.reason is not None:
                found["generated_text"] = whole_text(prompt, answer, values)
                if values.get("details"):
                    found["details"] = {
                        "prompt_tokens": len(answer.prompt),
                        "finish_reason": REASONS[piece.reason],
                        "generated_tokens": len(answer.tokens),
                        "seed": seed,
                    }
            yield sse.event(found)
    except Exception as error:
        yield str(as_mindie_error(error)).encode("utf-8", "replace")
