"""What clients are told of requests that cannot be answered."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from transformers import tokenization_utils_base

from soak_server import Findings, malformed

from .running import Running, embedded, running


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/v1/nothing", b"", 404),
        ("GET", "/v1/chat/completions", b"", 405),
        ("POST", "/v1/chat/completions", b"{", 400),
        ("POST", "/v1/chat/completions", b"", 400),
        ("POST", "/v1/chat/completions", b"[1]", 400),
        ("POST", "/v1/chat/completions", b"\xff\xfe", 400),
        ("POST", "/v1/completions", b'{"prompt": "\\ud800"}', 400),
        ("POST", "/v1/completions", b"[" * 100_000, 400),
        ("POST", "/v1/completions", b'{"prompt": "x", "temperature": NaN}', 400),
        ("POST", "/v1/completions", b'{"prompt": "x", "model": "\\ud800"}', 404),
    ],
)
def test_errors_have_openais_shape(service: Running, method: str, path: str, body: bytes, status: int) -> None:
    answer = httpx.request(method, service.url + path, content=body)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "the body is empty: send a JSON object"),
        (b"\xff\xfe", "the body is not valid UTF-8 at byte 0: send JSON as UTF-8"),
        (b'{"prompt": "\xe5"}', "the body is not valid UTF-8 at byte 12: send JSON as UTF-8"),
    ],
)
def test_what_is_wrong_with_a_body(service: Running, body: bytes, text: str) -> None:
    assert httpx.post(f"{service.url}/v1/completions", content=body).json()["error"]["message"] == text
    assert httpx.post(f"{service.url}/infer", content=body).json()["error"] == text


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_nobody_is_warned_of_a_text_that_is_refused(
    service: Running, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """transformers would, once, of one that is longer than the model's context."""
    warned: list[object] = []
    text = "word " * 1100
    body = {"prompt": text, "messages": [{"role": "user", "content": text}]}
    service.front.tokenizer.deprecation_warnings.clear()
    with monkeypatch.context() as patch:
        patch.setattr(tokenization_utils_base.logger, "warning", lambda *words: warned.append(words))
        answer = httpx.post(f"{service.url}/v1/{path}", json=body, timeout=60)
    assert (answer.status_code, warned) == (400, [])
    assert "tokens, the context is 1024" in answer.json()["error"]["message"]


def test_malformed_bodies_are_refused() -> None:
    """The soak test's, in which any answer of 5xx but 503 is a problem."""
    found = Findings()
    loaded = embedded(max_adapters=2)  # without room for adapters their paths are not looked at

    async def ask() -> None:
        async with httpx.AsyncClient(base_url=service.url, timeout=60) as client:
            await malformed(client, 250, found)

    with running(loaded) as service:
        asyncio.run(ask())
    assert found.problems == []
    assert found.statuses[503] == 0  # nor has the engine failed
    assert {200, 400, 422} <= set(found.statuses)


def test_methods_that_a_path_has(service: Running) -> None:
    for path, methods in {"/": "GET, POST", "/v1/completions": "POST", "/health": "GET"}.items():
        answer = httpx.put(service.url + path)
        assert (answer.status_code, answer.headers["allow"]) == (405, methods)
    for path in ("/infer", "/generate", "/v2/models/m1-icd10", "/v1/tokenizer"):  # MindIE's families
        answer = httpx.delete(service.url + path)
        assert (answer.status_code, answer.json()) == (
            405,
            {"error": "Method Not Allowed", "error_type": "Method Not Allowed"},
        )
