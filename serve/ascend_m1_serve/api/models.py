"""GET /v1/models, and the engine's state for the page at ``/``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from ..front import Front
from .mindie_common import PLATFORM
from .openapi import OPENAI_ERRORS


def routes(front: Front) -> APIRouter:
    """The routes."""
    router = APIRouter(responses=OPENAI_ERRORS)

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [describe(front, name) for name in front.models()]}

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        front.adapter(name)
        return describe(front, name)

    @router.get("/stats")
    async def stats() -> dict[str, Any]:
        limits = front.engine.limits
        fixed = {"max_sequences": limits.max_sequences, "max_length": limits.max_length, "blocks": limits.blocks}
        about = {"model": front.name, "device": limits.device, "dtype": limits.dtype, **fixed}
        return about | {"open": front.open} | asdict(front.engine.stats())

    return router


def describe(front: Front, name: str) -> dict[str, Any]:
    """A model or an adapter, as OpenAI's list has it."""
    return {
        "id": name,
        "object": "model",
        "created": front.created,
        "owned_by": PLATFORM,
        "root": front.name,
        "parent": None if name == front.name else front.name,
        "max_model_len": front.engine.limits.max_length,
    }
