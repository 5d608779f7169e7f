"""A stream is followed however its bytes are cut; times are those of the server's delays; failures say what failed."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ascend_m1.errors import InputError
from ascend_m1_serve.bench import report
from ascend_m1_serve.bench.client import (
    Endpoint,
    Record,
    base_url,
    events,
    first_model,
    open_clients,
    read_chunk,
    request_body,
    send,
)
from ascend_m1_serve.bench.prompts import Prompt

from .server import PROMPT_TOKENS, Known, event

SLACK = 0.15  # seconds that a busy machine may add to a delay


def ask(known: Known, max_tokens: int = 3, times: int = 1) -> list[Record]:
    """Requests one after the other."""

    async def run() -> list[Record]:
        records = []
        async with open_clients(known.url, "secret") as lend:
            for _ in range(times):
                record = Record(0.0, max_tokens, 0.0)
                body = request_body("chat", Prompt("hello", max_tokens), "m", {})
                async with lend() as client:
                    await send(client, "chat/completions", body, record, time.perf_counter())
                records.append(record)
        return records

    return asyncio.run(run())


def test_times_are_the_servers_delays(known: Known) -> None:
    known.first, known.gap = 0.3, 0.1
    (record,) = ask(known, max_tokens=4)
    assert record.error is None
    first, gaps, each = report.ttft(record), report.itl(record), report.tpot(record)
    assert first is not None
    assert 0.3 <= first < 0.3 + SLACK  # not the empty text that comes at once
    assert len(gaps) == 3
    # an event that comes late makes the next gap shorter
    assert all(0.1 - SLACK / 2 < gap < 0.1 + SLACK for gap in gaps)
    assert 0.3 - SLACK / 2 <= sum(gaps) < 0.3 + SLACK
    assert each == pytest.approx(sum(gaps) / 3)
    assert record.end is not None
    assert 0.6 <= record.end - record.start < 0.6 + SLACK


def test_usage_and_key(known: Known) -> None:
    (record,) = ask(known)
    assert (record.usage, record.output_tokens, record.finish_reason) == ((PROMPT_TOKENS, 3), 3, "length")
    assert known.headers[0]["authorization"] == "Bearer secret"
    known.usage = False
    (record,) = ask(known, max_tokens=5)
    assert (record.usage, record.output_tokens, record.error) == (None, 5, None)


def test_one_connection_serves_many(known: Known) -> None:
    assert [record.error for record in ask(known, times=5)] == [None] * 5
    assert len(known.clients) == 1


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (event(choices=[{"delta": {"content": "x"}}]), "the stream ended before the answer did"),
        ("Engine callback timeout", "the stream ended before the answer did"),
        (event(error={"message": "no memory"}), "no memory"),
        (event(error="no memory"), "no memory"),
        (event(choices=[]) + "data: {\n\n", "something else than this API's events: b'{'"),
        (event(token=3), "something else"),
        ("data: [1]\n\n", "something else"),
        ("data: 1\n\n", "something else"),
        (event(choices=7), "something else"),
        (event(choices=[], usage={"prompt_tokens": 1}), "something else"),
    ],
)
def test_broken_streams(known: Known, broken: str, message: str) -> None:
    known.broken = broken
    (record,) = ask(known)
    assert record.error is not None
    assert message in record.error
    assert record.end is not None


def test_refusals(known: Known) -> None:
    known.fail_every = 1
    (record,) = ask(known)
    assert record.error == "HTTP 503: out of luck"
    (record,) = ask(Known(url="http://127.0.0.1:1"))
    assert record.error is not None
    assert record.error.startswith("ConnectError")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"delta": {"role": "assistant", "content": ""}}, False),
        ({"delta": {"content": None}}, False),
        ({"delta": {"content": " "}}, True),
        ({"delta": {"reasoning_content": "hm"}}, True),
        ({"delta": {"tool_calls": [{"index": 0}]}}, True),
        ({"text": "x"}, True),
        ({"text": ""}, False),
    ],
)
def test_what_counts_as_text(content: dict[str, object], text: bool) -> None:
    assert read_chunk(json.dumps({"choices": [content]}).encode()).text is text


@given(
    st.lists(st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"])), max_size=8),
    st.sampled_from(["\n", "\r\n"]),
    st.lists(st.integers(1, 20), min_size=1),
)
def test_events_do_not_depend_on_the_cuts(texts: list[str], end: str, sizes: list[int]) -> None:
    wanted = [json.dumps(text, ensure_ascii=False).encode() for text in texts]
    whole = b"".join(b": comment\nevent: x\ndata: " + data + end.encode() * 2 for data in wanted)

    async def pieces() -> AsyncIterator[bytes]:
        rest, turn = whole, 0
        while rest:
            size = sizes[turn % len(sizes)]
            yield rest[:size]
            rest, turn = rest[size:], turn + 1

    async def run() -> list[bytes]:
        return [data async for data in events(pieces())]

    assert asyncio.run(run()) == wanted


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://a:80", "http://a/v1/"),
        ("http://a:8000/", "http://a:8000/v1/"),
        ("https://a/v1", "https://a/v1/"),
        ("https://a/v1/", "https://a/v1/"),
        ("http://a/some/where", "http://a/some/where/v1/"),
        ("http://[::1]:8000", "http://[::1]:8000/v1/"),
    ],
)
def test_base_url(url: str, base: str) -> None:
    assert str(base_url(url)) == base


@pytest.mark.parametrize(
    "url", ["", "a", "a:8000", "127.0.0.1:8000", "ftp://a", "http://", "http://a:x", "http://a?b=c"]
)
def test_no_url(url: str) -> None:
    with pytest.raises(InputError, match=r"^--url .*give one like http://127"):
        base_url(url)


@pytest.mark.parametrize(
    ("endpoint", "content", "field", "value"),
    [
        ("completions", "p", "prompt", "p"),
        ("chat", "p", "messages", [{"role": "user", "content": "p"}]),
        ("chat", [{"role": "system", "content": "s"}], "messages", [{"role": "system", "content": "s"}]),
    ],
)
def test_request_body(endpoint: Endpoint, content: str | list[dict[str, str]], field: str, value: object) -> None:
    assert request_body(endpoint, Prompt(content, 5), "m", {"ignore_eos": True}) == {
        "model": "m",
        "max_tokens": 5,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
        field: value,
    }


@pytest.mark.parametrize(
    ("status", "content", "message"),
    [
        (401, {"error": {"message": "wrong key"}}, "HTTP 401: wrong key: correct --url or --api-key, or give --model"),
        (404, {"detail": "Not Found"}, "HTTP 404: Not Found"),
        (500, "", "HTTP 500: Internal Server Error"),
        (200, {"data": []}, "lists no model"),
        (200, [], "lists no model"),
        (200, "hello", "lists no model"),
    ],
)
def test_no_model(status: int, content: object, message: str) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if isinstance(content, str):
            return httpx.Response(status, text=content)
        return httpx.Response(status, json=content)

    async def run() -> str:
        async with httpx.AsyncClient(base_url=base_url("http://a"), transport=httpx.MockTransport(answer)) as client:
            return await first_model(client)

    with pytest.raises(InputError, match="http://a/v1/models: ") as raised:
        asyncio.run(run())
    assert message in str(raised.value)
