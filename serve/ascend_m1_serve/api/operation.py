"""Health, for probes."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response

from ..front import Front
from .errors import ApiError
from .openapi import OPENAI_ERRORS


def routes(front: Front) -> APIRouter:
    """The routes."""
    router = APIRouter(responses=OPENAI_ERRORS)

    @router.get("/health", response_class=Response, responses={503: {}})
    async def health() -> Response:
        """Whether the engine works."""
        return Response(status_code=200 if front.engine.failure is None else 503)

    @router.get("/ready", response_class=Response)
    async def ready() -> Response:
        """Whether requests are taken."""
        if front.engine.failure is not None or front.draining:
            raise ApiError(503, front.engine.failure or "the service is being stopped")
        return Response(status_code=200)

    return router
