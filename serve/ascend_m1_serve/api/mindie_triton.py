"""Triton's family: /v2, /v2/models/{model} and what can be asked of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from ascend_m1.errors import InputError

from .. import __version__
from ..answer import Answer
from ..front import Front
from ..mindie import requests as form
from ..protocol import Sampling
from . import sse
from .bodies import read_object
from .mindie_common import (
    DEFAULT_NEW_TOKENS,
    PLATFORM,
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
from .openapi import IDS, MINDIE_ERRORS, TEXT, family_body, members, operation

TEXT_BODY = family_body(form.TRITON, True, text_input=TEXT)
TENSOR = members(name="string", shape=IDS, datatype={"enum": ["UINT32", "INT32", "INT64"]}, data=IDS)
TENSORS_BODY = family_body(form.TRITON, True, inputs={"type": "array", "items": TENSOR, "minItems": 1, "maxItems": 1})


def routes(front: Front, settings: MindieSettings) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/v2", responses=MINDIE_ERRORS)
    running: dict[str, list[Answer]] = {}  # by the request's id

    _about(router, front, settings)

    @router.post("/models/{model}/infer", **operation(TENSORS_BODY, members(id="string", outputs="array")))
    @guarded
    async def infer(model: str, request: Request) -> Response:
        return await tensors(request, front, settings, model, running)

    @router.post("/models/{model}/generate", **operation(TEXT_BODY, members(id="string", text_output="string")))
    @guarded
    async def generate(model: str, request: Request) -> Response:
        return await text(request, front, settings, model, running, stream=False)

    @router.post(
        "/models/{model}/generate_stream",
        response_class=StreamingResponse,
        **operation(TEXT_BODY, None, [sse.MEDIA]),
    )
    @guarded
    async def generate_stream(model: str, request: Request) -> Response:
        return await text(request, front, settings, model, running, stream=True)

    @router.post("/models/{model}/stopInfer", **operation(members(id="string"), members(id="string")))
    @guarded
    async def stop(model: str, request: Request) -> Response:
        adapter_of(front, model)
        content = await read_object(request)
        identity = form.value("id", content.get("id"), form.TRITON_ID)
        if identity not in running:
            raise MindieError(404, "NotFoundError", f"Request {identity} not found.")
        for answer in running[identity]:
            answer.abort()
        return answered(content)

    return router


def _about(router: APIRouter, front: Front, settings: MindieSettings) -> None:
    @router.get("")
    async def server() -> dict[str, Any]:
        limits = {
            "max_iter_times": front.max_new or front.engine.limits.max_length,
            "prefill_policy_type": 0,
            "decode_policy_type": 0,
            "max_prefill_batch_size": settings.prefill_batch,
            "max_prefill_tokens": settings.prefill_tokens,
        }
        return {"name": PLATFORM, "version": __version__, "extensions": limits}

    @router.get("/models/{model}")
    @guarded
    async def describe(model: str) -> Response:
        adapter_of(front, model)
        tensor = {"shape": [-1], "datatype": "UINT32"}
        found = {"inputs": [{"name": "input0", **tensor}], "outputs": [{"name": "output0", **tensor}]}
        return answered({"name": model, "platform": PLATFORM, **found})

    @router.get("/models/{model}/config")
    @guarded
    async def config(model: str) -> Response:
        adapter_of(front, model)
        return answered({
            "model_name": model,
            "input_datatype": "INT64",
            "output_datatype": "INT64",
            "max_seq_len": front.engine.limits.max_length,
            "npu_mem_size": settings.npu_memory,
            "cpu_mem_size": settings.cpu_memory,
            "world_size": settings.world_size,
            "model_weight_path": settings.folder,
            "model_instance_type": "Standard",
        })  # fmt: skip


def adapter_of(front: Front, model: str) -> str | None:
    """Raises MindieError for a model that is not served."""
    if model not in front.models():
        raise MindieError(404, "NotFoundError", f"Model {model} not found.")
    return front.adapter(model)


def submitted(
    front: Front, model: str, content: Mapping[str, Any], given: Mapping[str, Any], ids: list[int]
) -> tuple[Answer, dict[str, Any], str, Sampling]:
    """The answer, the values, the request's id, and the options."""
    values = form.values(given, form.TRITON)
    identity = content.get("id")
    identity = "" if identity is None else form.value("id", identity, form.TRITON_ID)
    sampling = sampling_of(front, values, values.get("max_new_tokens", DEFAULT_NEW_TOKENS))
    priority = values.get("priority", 5)
    (answer,) = front.submit(ids, sampling, adapter=adapter_of(front, model), priority=priority)
    return answer, values, identity, sampling


async def tensors(
    request: Request, front: Front, settings: MindieSettings, model: str, running: dict[str, list[Answer]]
) -> Response:
    """Ids in, ids out."""
    adapter_of(front, model)
    content = await read_object(request)
    inputs = content.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise InputError("inputs must be a list of one object.")
    tensor = inputs[0]
    if tensor.get("datatype") not in ("UINT32", "INT32", "INT64"):
        raise InputError("inputs[0].datatype must be UINT32, INT32 or INT64.")
    ids = form.token_ids("inputs[0].data", tensor.get("data"), front.engine.limits.vocab_size)
    if tensor.get("shape") not in ([len(ids)], [1, len(ids)]):
        raise InputError(f"inputs[0].shape must be [1, {len(ids)}], as data has.")
    given = form.parameters(content) or form.parameters(tensor)
    answer, values, identity, _ = submitted(front, model, content, given, ids)
    done = await watched(request, front, settings, answer, values, identity, running)
    if not done:
        return Response(status_code=499)
    tokens = answer.tokens
    output = {"name": "output0", "shape": [1, len(tokens)], "datatype": "UINT32", "data": tokens}
    outputs = content.get("outputs")
    if isinstance(outputs, list) and outputs and isinstance(outputs[0], dict):
        output["name"] = str(outputs[0].get("name", "output0"))
    found = {"id": identity, "model_name": model, "model_version": None, "outputs": [output]}
    return answered(found)


async def watched(
    request: Request,
    front: Front,
    settings: MindieSettings,
    answer: Answer,
    values: Mapping[str, Any],
    identity: str,
    running: dict[str, list[Answer]],
) -> bool:
    """Whether the answer came to its end, during which it can be stopped by its id."""
    if identity:
        running.setdefault(identity, []).append(answer)
    try:
        return await finished(request, front, [answer], reader(settings, values.get("timeout")))
    finally:
        forget(running, identity, answer)


def forget(running: dict[str, list[Answer]], identity: str, answer: Answer) -> None:
    """It can no longer be stopped."""
    if identity:
        running[identity].remove(answer)
        if not running[identity]:
            del running[identity]


async def text(
    request: Request,
    front: Front,
    settings: MindieSettings,
    model: str,
    running: dict[str, list[Answer]],
    stream: bool,
) -> Response:
    """Text in, text out."""
    adapter_of(front, model)
    content = await read_object(request)
    ids = await front.text_ids(form.text("text_input", content))
    answer, values, identity, _ = submitted(front, model, content, form.parameters(content), ids)
    if stream:
        events = text_events(front, settings, model, answer, values, identity, running)
        return sse.Events(front, [answer], events)
    done = await watched(request, front, settings, answer, values, identity, running)
    if not done:
        return Response(status_code=499)
    found = head(identity, model, answer.text)
    if values.get("details"):
        found["details"] = {
            "finish_reason": REASONS[answer.reason or "abort"],
            "generated_tokens": len(answer.tokens),
            "first_token_cost": None,
            "decode_cost": None,
            "batch_size": [front.engine.stats().last_batch] * len(answer.tokens),
            "queue_wait_time": [int(answer.queued * 1e6) if index == 0 else 0 for index in range(len(answer.tokens))],
        }
        if values.get("perf_stat"):
            found["details"]["perf_stat"] = list(
                map(list, zip(answer.tokens, answer.times.milliseconds(), strict=False))
            )
    return answered(found)


def head(identity: str, model: str, output: str) -> dict[str, Any]:
    """The members of every answer."""
    return {"id": identity, "model_name": model, "model_version": None, "text_output": output}


async def text_events(
    front: Front,
    settings: MindieSettings,
    model: str,
    answer: Answer,
    values: Mapping[str, Any],
    identity: str,
    running: dict[str, list[Answer]],
) -> AsyncGenerator[bytes, None]:
    """One for each piece of text; no space after the colon, no end mark."""
    if identity:
        running.setdefault(identity, []).append(answer)
    first = True
    try:
        async for piece in reader(settings, values.get("timeout"))(answer):
            if not piece.text and piece.reason is None:
                continue
            found = head(identity, model, answer.text if settings.full_text else piece.text)
            if values.get("details"):
                found["details"] = {
                    "generated_tokens": len(answer.tokens),
                    "first_token_cost": None,
                    "decode_cost": None,
                    "batch_size": front.engine.stats().last_batch,
                    "queue_wait_time": int(answer.queued * 1e6) if first else 0,
                }
                if piece.reason is not None:
                    found["details"]["finish_reason"] = REASONS[piece.reason]
            taken = answer.times.milliseconds()[-1] if answer.times.tokens else None
            found |= {"prefill_time": taken if first else None, "decode_time": None if first else taken}
            first = False
            yield b"data:" + sse.dump(found) + b"\n\n"
    except Exception as error:
        yield str(as_mindie_error(error)).encode("utf-8", "replace")
    finally:
        forget(running, identity, answer)
