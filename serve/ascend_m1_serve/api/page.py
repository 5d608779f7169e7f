"""GET /: a page to chat on, without anything from elsewhere."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

_FILE = Path(__file__).with_name("page.html")
# Scripts and styles of the page itself, and this server's answers; nothing else is loaded, and nobody frames it.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; "
    "frame-ancestors 'none'"
)


def routes() -> APIRouter:
    """The route."""
    router, text = APIRouter(), _FILE.read_text(encoding="utf-8")

    @router.get("/", response_class=HTMLResponse)
    async def page() -> HTMLResponse:
        return HTMLResponse(text, headers={"Content-Security-Policy": _POLICY})

    return router
