"""A stream's answers are given back however it ends."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from ascend_m1_serve.api import create_app

from .running import Running, wait_until

_LONG = {"max_tokens": 900, "ignore_eos": True, "stream": True}
ASKED = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}], **_LONG},
    "/v1/completions": {"prompt": "x", "n": 2, **_LONG},
    "/generate": {"prompt": "x", **_LONG},
    "/generate_stream": {"inputs": "x", "parameters": {"max_new_tokens": 900}},
    "/infer": {"inputs": "x", "stream": True, "parameters": {"max_new_tokens": 900}},
    "/v2/models/m1-icd10/generate_stream": {"id": "a", "text_input": "x", "parameters": {"max_new_tokens": 900}},
}


@pytest.mark.parametrize("path", ASKED)
@pytest.mark.parametrize("sent", [0, 1, 2])
def test_a_client_that_has_gone(service: Running, path: str, sent: int) -> None:
    """The server has sent so many messages of the answer; it waits for the connection with the next one."""
    app = create_app(service.front)
    bodies = [{"type": "http.request", "body": json.dumps(ASKED[path]).encode(), "more_body": False}]

    async def ask() -> None:
        begun, gone = 0, asyncio.Event()

        async def receive() -> dict[str, Any]:
            if bodies:
                return bodies.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            nonlocal begun
            begun += 1
            if begun > sent:
                gone.set()
                await asyncio.sleep(60)

        scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": []}
        await app(scope, receive, send)

    service.call(ask)
    assert service.front.open == 0
    wait_until(lambda: service.front.engine.stats().running == 0)
