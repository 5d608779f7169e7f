"""Health, for probes."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response

from ..front import Front
from .errors import ApiError


def routes(front: Front) -> APIRouter:
    """The routes."""
    router = APIRouter()

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

    return router
