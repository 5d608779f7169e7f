"""GET /metrics."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, Response

from ..front import Front
from .mindie_common import MindieError, MindieSettings, guarded
from .openapi import MINDIE_ERRORS


def routes(front: Front, settings: MindieSettings) -> APIRouter:
    """The route."""
    router = APIRouter(responses=MINDIE_ERRORS)

    @router.get("/metrics", response_class=PlainTextResponse)
    @guarded
    async def metrics() -> Response:
        if not settings.monitor:
            kind = "Incomplete Generation"
            raise MindieError(500, kind, "metrics are off: start with MIES_SERVICE_MONITOR_MODE=1")
        return Response(front.metrics.text(), media_type="text/plain; charset=utf-8")

    return router
