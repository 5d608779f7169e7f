"""MindIE's management plane: health, state, adapters, stopping."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from .. import __version__
from ..front import Front
from ..mindie import requests as form
from ..protocol import Sampling
from ..server import stop_serving
from .bodies import read_object
from .guards import STOP_PATH
from .mindie_common import MindieError, MindieSettings, answered, guarded
from .mindie_triton import adapter_of
from .openapi import MINDIE_ERRORS, TEXT, members, operation

DONE = members(message="string")
_FORCE_SECONDS = 5  # for what is under way, as in MindIE
_STATES = ("TTFT", "TBT", "waitingInferRequestNum", "processingInferRequestNum", "remainBlocks")


def routes(front: Front, settings: MindieSettings) -> APIRouter:
    """The routes."""
    router = APIRouter(responses=MINDIE_ERRORS)
    _health(router, front)
    _about(router, front, settings)
    _state(router, front)
    _control(router, front)
    return router


def _health(router: APIRouter, front: Front) -> None:
    @router.get("/v2/health/live", response_class=Response)  # with a message, or without a body
    @guarded
    async def live() -> Response:
        check(front)
        return answered({"message": "Service is alive but busy"}) if busy(front) else Response()

    @router.get("/v2/health/ready", response_class=Response, responses={503: {}})
    @router.get("/v2/models/{model}/ready", response_class=Response, responses={503: {}})
    @guarded
    async def ready(model: str | None = None) -> Response:
        if model is not None:
            adapter_of(front, model)
        check(front)
        return Response(status_code=503 if front.draining or busy(front) else 200)

    @router.get("/health/timed{seconds}")
    @guarded
    async def timed(seconds: str) -> Response:
        matched = re.fullmatch(r"(?:-(\d{1,4}))?", seconds)
        limit = int(matched[1] or 10) if matched else 0
        if not 1 <= limit <= 600:
            raise MindieError(404, "NotFoundError", f"/health/timed{seconds}: give 1 to 600 seconds")
        if not await responds(front, limit):
            raise MindieError(500, "Incomplete Generation", f"no token within {limit} s")
        return answered({"status": "healthy"})

    @router.get("/health/timed")
    @guarded
    async def timed_by_default() -> Response:
        return await timed("")


def check(front: Front) -> None:
    """Raises MindieError if the engine has failed."""
    if front.engine.failure is not None:
        raise MindieError(500, "Incomplete Generation", front.engine.failure)


def busy(front: Front) -> bool:
    """Whether nothing more is taken now."""
    return front.open >= front.engine.limits.max_sequences + front.max_queue


async def responds(front: Front, seconds: float) -> bool:
    """Whether one token comes in time, to this request or, where all places are taken, to others."""
    check(front)
    steps = front.engine.stats().steps
    stream = front.engine.submit([0], Sampling(max_tokens=1), priority=1)
    try:
        await asyncio.wait_for(anext(stream), seconds)
    except asyncio.TimeoutError:
        return front.engine.stats().steps > steps
    finally:
        stream.abort()
    return True


def _about(router: APIRouter, front: Front, settings: MindieSettings) -> None:
    limits = front.engine.limits

    @router.get("/info")
    async def info() -> dict[str, Any]:
        model = {
            "model_device_type": limits.device,
            "model_dtype": limits.dtype,
            "model_id": front.name,
            "model_pipeline_tag": "text-generation",
            "model_sha": None,
            "max_total_tokens": limits.max_length,
        }
        unknown = dict.fromkeys(("docker_label", "max_stop_sequences", "max_waiting_tokens", "sha"))
        return unknown | {
            "max_batch_total_tokens": settings.prefill_tokens,
            "max_best_of": 1,
            "max_concurrent_requests": limits.max_sequences,
            "validation_workers": None,
            "version": __version__,
            "waiting_served_ratio": None,
            "models": [model],
            "max_input_length": front.max_input or limits.max_length - 1,
        }

    @router.get("/v1/config")
    async def config() -> dict[str, Any]:
        return {
            "modelName": front.name,
            "maxSeqLen": limits.max_length,
            "npuMemSize": settings.npu_memory,
            "cpuMemSize": settings.cpu_memory,
            "worldSize": settings.world_size,
            "maxOutputLen": front.max_new or limits.max_length,
            "cacheBlockSize": limits.block_size,
        }


def _state(router: APIRouter, front: Front) -> None:
    limits = front.engine.limits

    @router.get("/v2/models/{model}/getSlotCount")
    @guarded
    async def slots(model: str) -> Response:
        adapter_of(front, model)
        stats = front.engine.stats()
        free = max(0, limits.max_sequences - stats.running - stats.swapped)
        available = stats.free_blocks * limits.block_size
        return answered({"total_slots": limits.max_sequences, "free_slots": free, "available_tokens_length": available})

    @router.get("/metrics-json")
    async def metrics_json() -> dict[str, Any]:
        stats = front.engine.stats()
        first, between = (int(1000 * seconds) for seconds in (front.metrics.first_token, front.metrics.between_tokens))
        values = (first, between, stats.waiting, stats.running, stats.free_blocks)
        rows = [
            {"metric": [{"__name__": name, "job": "node", "instance": "ascend-m1"}], "value": str(value)}
            for name, value in zip(_STATES, values, strict=True)
        ]
        return {"resultType": "vector", "result": rows}

    @router.get("/v1/status")
    @router.get("/v2/status")
    async def status() -> dict[str, Any]:
        stats = front.engine.stats()
        resource = {
            "availSlotsNum": max(0, limits.max_sequences - stats.running - stats.swapped),
            "availBlockNum": stats.free_blocks,
            "waitingRequestNum": stats.waiting,
            "runningRequestNum": stats.running,
            "swappedRequestNum": stats.swapped,
            "freeNpuBlockNums": stats.free_blocks,
            "freeCpuBlockNums": 0,
            "totalNpuBlockNums": limits.blocks,
            "totalCpuBlockNums": 0,
        }
        service = {"roleStatus": "RoleReady", "currentRole": "none"}
        return {"service": service, "resource": resource, "linkStatus": {"peers": []}}


def _control(router: APIRouter, front: Front) -> None:
    name = form.Parameter("string", pattern=r"[A-Za-z0-9_][A-Za-z0-9._/-]{0,255}")

    @router.post("/v1/load_lora_adapter", **operation(members(lora_name=TEXT, lora_path=TEXT), DONE))
    @guarded
    async def load(request: Request) -> Response:
        content = await read_object(request)
        adapter = form.value("lora_name", content.get("lora_name"), name)
        path = form.text("lora_path", content)
        if adapter == front.name:
            raise MindieError(422, "Input Validation Error", f"lora_name {adapter} is the model's own.")
        await front.engine.add_adapter(adapter, path)
        return answered({"message": f"Success: LoRA adapter '{adapter}' added successfully."})

    @router.post("/v1/unload_lora_adapter", **operation(members(lora_name=TEXT), DONE))
    @guarded
    async def unload(request: Request) -> Response:
        content = await read_object(request)
        adapter = form.value("lora_name", content.get("lora_name"), name)
        await front.engine.remove_adapter(adapter)
        return answered({"message": f"Success: LoRA adapter '{adapter}' removed successfully."})

    @router.post("/v1/role/{role}")
    @router.post("/v2/role/{role}")
    @guarded
    async def role(role: str) -> Response:
        raise MindieError(400, "Bad Request", "prefill and decode run on one server here: it has no other role")

    @router.get(STOP_PATH, response_class=Response)
    @guarded
    async def stop(mode: str = "") -> Response:
        if front.draining:
            raise MindieError(500, "Incomplete Generation", "The service is being stopped already.")
        front.draining = True
        while front.open and mode != "Force":
            await asyncio.sleep(0.02)
        loop = asyncio.get_running_loop()
        loop.call_later(0.1, stop_serving)  # a moment for this answer
        if mode == "Force":
            loop.call_later(_FORCE_SECONDS, stop_serving)
        return Response()
