"""The application: which routes there are, and what stands before them."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import FastAPI

from .. import __version__
from ..front import Front
from . import errors, openai_chat, openai_completions, operation
from .guards import LimitBodies, LogRequests, RequireKey


@dataclass(frozen=True)
class ApiOptions:
    """Of one server.

    Attributes:
        key: that requests must bring; None: none.
        max_body: bytes of a request.
    """

    key: str | None = None
    max_body: int = 4 * 2**20


def create_app(front: Front, options: ApiOptions | None = None) -> FastAPI:
    """All families on one address."""
    options = options or ApiOptions()
    app = FastAPI(title="ascend-m1", version=__version__, docs_url=None, redoc_url=None)
    errors.install(app)
    for part in (openai_chat, openai_completions, operation):
        app.include_router(part.routes(front))
    app.add_middleware(LimitBodies, limit=options.max_body)
    if options.key is not None:
        app.add_middleware(RequireKey, key=options.key)
    app.add_middleware(LogRequests)  # the outermost: it sees what the others refuse
    return app
