"""Models, health and metrics."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response

from ..front import Front
from .errors import ApiError


def routes(front: Front) -> APIRouter:
    """The routes."""
    router = APIRouter()

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [describe(front, name) for name in front.models()]}

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        front.adapter(name)
        return describe(front, name)

    @router.get("/health")
    async def health() -> Response:
        """Whether the engine works."""
        return Response(status_code=200 if front.engine.failure is None else 503)

    @router.get("/ready")
    async def ready() -> Response:
        """Whether requests are taken."""
        if front.engine.failure is not None or front.draining:
            raise ApiError(503, front.engine.failure or "the service is being stopped")
        return Response(status_code=200)

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(front.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @router.get("/stats")
    async def stats() -> dict[str, Any]:
        """The engine's state, for the page at ``/``."""
        limits = front.engine.limits
        fixed = {"max_sequences": limits.max_sequences, "max_length": limits.max_length, "blocks": limits.blocks}
        return {"model": front.name, "device": limits.device, "dtype": limits.dtype, **fixed} | asdict(
            front.engine.stats()
        )

    return router


def describe(front: Front, name: str) -> dict[str, Any]:
    """A model or an adapter, as OpenAI's list has it."""
    return {
        "id": name,
        "object": "model",
        "created": front.created,
        "owned_by": "ascend-m1",
        "root": front.name,
        "parent": None if name == front.name else front.name,
        "max_model_len": front.engine.limits.max_length,
    }
