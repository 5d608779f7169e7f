"""A server in a thread whose delays are known, and which counts what reaches it."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

PROMPT_TOKENS = 7


@dataclass
class Known:
    """How to answer, and what was asked.

    Attributes:
        first: seconds until the first text. gap: seconds between one text and the next.
        usage: tell it at the end. fail_every: each n-th request is refused; 0: none. broken: what to send instead.
        at_most: the most requests under way at once, until now.
    """

    first: float = 0.0
    gap: float = 0.0
    usage: bool = True
    fail_every: int = 0
    broken: str = ""
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    clients: set[Any] = field(default_factory=set)
    under_way: int = 0
    at_most: int = 0
    finished: int = 0


def make_app(known: Known) -> FastAPI:
    app = FastAPI()

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": "first"}, {"id": "second"}]}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await answer(request, lambda text: {"delta": {"content": text}})

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await answer(request, lambda text: {"text": text})

    async def answer(request: Request, shape: Any) -> Response:
        body = await request.json()
        known.bodies.append(body)
        known.headers.append(dict(request.headers))
        known.clients.add(request.client)
        if known.fail_every and len(known.bodies) % known.fail_every == 0:
            return JSONResponse({"error": {"message": "out of\nluck", "code": 503}}, 503)
        return StreamingResponse(stream(body, shape), media_type="text/event-stream")

    async def stream(body: dict[str, Any], shape: Any) -> AsyncIterator[str]:
        known.under_way += 1
        known.at_most = max(known.at_most, known.under_way)
        try:
            if known.broken:
                yield known.broken
                return
            if "messages" in body:
                yield event(choices=[{"delta": {"role": "assistant", "content": ""}}])
            await asyncio.sleep(known.first)
            for i in range(body["max_tokens"]):
                if i:
                    await asyncio.sleep(known.gap)
                # what httpx takes for a line end, but JSON does not
                yield event(choices=[shape("\u2028x")])
            yield event(choices=[{**shape(""), "finish_reason": "length"}])
            if known.usage:
                yield event(choices=[], usage={"prompt_tokens": PROMPT_TOKENS, "completion_tokens": body["max_tokens"]})
            yield "data: [DONE]\n\n"
        finally:
            known.under_way -= 1
            known.finished += 1

    return app


def event(**content: Any) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


@contextmanager
def running(known: Known) -> Iterator[Known]:
    """Serve on a free port until the end of the block."""
    server = uvicorn.Server(uvicorn.Config(make_app(known), port=0, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while not server.started:
            assert thread.is_alive(), "the test server did not start"
            assert time.monotonic() < deadline, "the test server did not start"
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        known.url = f"http://127.0.0.1:{port}"
        yield known
    finally:
        server.should_exit = True
        thread.join(20)
