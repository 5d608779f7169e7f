"""The applications: which routes there are, and what stands before them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import FastAPI

from .. import __version__
from ..front import Front
from . import (
    errors,
    metrics,
    mindie_management,
    mindie_own,
    mindie_text,
    mindie_triton,
    models,
    openai_chat,
    openai_completions,
    operation,
    page,
)
from .guards import AnswerFailures, LimitBodies, LogRequests, RefuseOtherPages, RequireKey
from .mindie_common import MindieSettings, error_response

Plane = Literal["service", "management", "metrics"]
PLANES: tuple[Plane, ...] = ("service", "management", "metrics")
# Of MindIE: their errors have its form.
_FAMILIES: tuple[tuple[Plane, Any], ...] = (
    *(("service", family) for family in (mindie_text, mindie_own, mindie_triton)),
    ("management", mindie_management),
    ("metrics", metrics),
)


@dataclass(frozen=True)
class ApiOptions:
    """Of one server.

    Attributes:
        key: that requests must bring; None: none.
        max_body: bytes of a request. body_seconds: in which they must come.
        local: only this machine reaches it.
    """

    key: str | None = None
    max_body: int = 4 * 2**20
    body_seconds: float = 60
    local: bool = False


def create_app(
    front: Front,
    options: ApiOptions | None = None,
    settings: MindieSettings | None = None,
    planes: Collection[Plane] = PLANES,
) -> FastAPI:
    """The planes that share an address; unless told otherwise all of them.

    Args:
        settings: of a config.json; without one MindIE's families have the usual ones, OpenAI's none.
    """
    options, configured, settings = options or ApiOptions(), settings, settings or MindieSettings()
    app = FastAPI(title="ascend-m1", version=__version__, docs_url=None, redoc_url=None)
    families = [family.routes(front, settings) for name, family in _FAMILIES if name in planes]
    errors.install(app, [route for router in families for route in router.routes], error_response)
    if "service" in planes:
        for part in (openai_chat, openai_completions):
            app.include_router(part.routes(front, configured))
        app.include_router(models.routes(front))
        app.include_router(page.routes())
    if "management" in planes:
        app.include_router(operation.routes(front))
    for router in families:
        app.include_router(router)
    app.add_middleware(LimitBodies, limit=options.max_body, seconds=options.body_seconds)
    if options.key is None:  # no page of another site knows a key
        app.add_middleware(RefuseOtherPages, local=options.local)
    else:
        app.add_middleware(RequireKey, key=options.key)
    app.add_middleware(AnswerFailures)
    app.add_middleware(LogRequests)  # the outermost: it sees what the others refuse
    return app
