"""OpenAI's endpoints in a service with a config.json: its time limits, and what MindIE adds to the end of a stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from ascend_m1_serve.api.errors import ApiError
from ascend_m1_serve.api.mindie_common import MindieSettings, reader

from ..api.conftest import service  # noqa: F401  (a fixture)
from ..api.running import Running, embedded, running, wait_until

CHAT = {"messages": [{"role": "user", "content": "What does ICD-10-CM code J45 mean?"}]}
TEXT = {"prompt": "<C_Q>What does ICD-10-CM code J45 mean?<C_A>"}
ENDPOINTS = [("chat/completions", CHAT), ("completions", TEXT)]


@pytest.fixture(scope="module")
def configured() -> Iterator[Running]:
    with running(embedded(), settings=MindieSettings(full_text=True)) as found:
        yield found


@pytest.fixture(scope="module")
def hasty() -> Iterator[Running]:
    with running(embedded(), settings=MindieSettings(whole_timeout=0.05)) as found:
        yield found
        assert found.front.open == 0


def ends(url: str, endpoint: str, body: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The event of each answer that has its finish reason."""
    answer = httpx.post(f"{url}/v1/{endpoint}", json={**body, "stream": True}, timeout=60)
    *events, done = [line.removeprefix("data: ") for line in answer.text.strip().split("\n\n")]
    assert done == "[DONE]"
    found = [json.loads(event) for event in events]
    assert all("usage" not in event for event in found if event["choices"][0]["finish_reason"] is None)
    return {event["choices"][0]["index"]: event for event in found if event["choices"][0]["finish_reason"]}


@pytest.mark.parametrize(("endpoint", "body"), ENDPOINTS)
def test_the_end_of_a_stream(
    configured: Running,
    service: Running,  # noqa: F811
    endpoint: str,
    body: dict[str, Any],
) -> None:
    """Usage without stream_options, and the whole text of a chat's answer if the file asks for it."""
    whole = httpx.post(f"{configured.url}/v1/{endpoint}", json=body, timeout=60).json()["usage"]
    found = ends(configured.url, endpoint, {**body, "n": 2})
    assert sorted(found) == [0, 1]
    for event in found.values():
        assert event["usage"]["completion_tokens"] == whole["completion_tokens"]
        assert event["usage"]["total_tokens"] == whole["total_tokens"]
        assert event.get("full_text") == ("Asthma" if body is CHAT else None)
    (plain,) = ends(service.url, endpoint, body).values()
    assert not {"usage", "full_text"} & plain.keys()


@pytest.mark.parametrize(("endpoint", "body"), ENDPOINTS)
@pytest.mark.parametrize("stream", [False, True])
def test_time_limits(hasty: Running, endpoint: str, body: dict[str, Any], stream: bool) -> None:
    long = {**body, "max_tokens": 900, "ignore_eos": True, "stream": stream, "n": 2}
    answer = httpx.post(f"{hasty.url}/v1/{endpoint}", json=long, timeout=60)
    assert answer.status_code == (200 if stream else 500)
    error = json.loads(answer.text.strip().split("\n\n")[-1].removeprefix("data: "))["error"]
    assert error["message"].startswith("Engine callback timeout: ")
    wait_until(lambda: hasty.front.open == 0)


def test_a_requests_answers_share_its_time() -> None:
    """Those that are read one after the other, too."""

    class Slow:
        """Two pieces, each after a while."""

        def __init__(self) -> None:
            self.tokens: list[int] = []

        def __aiter__(self) -> Slow:
            return self

        async def __anext__(self) -> int:
            if len(self.tokens) == 2:
                raise StopAsyncIteration
            await asyncio.sleep(0.1)
            self.tokens.append(1)
            return 1

    async def read_all() -> None:
        read = reader(MindieSettings(whole_timeout=0.3), None)
        assert len([piece async for piece in read(Slow())]) == 2  # type: ignore[arg-type]
        with pytest.raises(ApiError, match=r"Engine callback timeout: \d tokens in 0\.3 s"):
            _ = [piece async for piece in read(Slow())]  # type: ignore[arg-type]

    asyncio.run(read_all())
