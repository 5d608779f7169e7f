"""One request over HTTP: sent, followed as a stream, timed.

A server-sent event of this API is one line ``data: {...}``; times are taken when its bytes arrive here, before they are
parsed. httpx's own lines do not fit: they end at U+2028 and its like too, which JSON may hold.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import httpx

from ascend_m1.errors import InputError

from .prompts import Prompt

Endpoint = Literal["chat", "completions"]
Lend = Callable[[], AbstractAsyncContextManager[httpx.AsyncClient]]
PATHS: dict[Endpoint, str] = {"chat": "chat/completions", "completions": "completions"}
TEXTS = ("content", "reasoning_content", "reasoning", "tool_calls")  # of a delta: what counts as something generated
# A queue may be long, so an answer may take any time; Ctrl-C ends the waiting.
TIMEOUT = httpx.Timeout(None, connect=60)
# Servers close an idle connection after five seconds or later: one about to be closed is not used again.
LIMITS = httpx.Limits(max_connections=1, keepalive_expiry=2)


@dataclass
class Record:
    """What is known of a request. Times are seconds since the measurement's start.

    Attributes:
        scheduled: when it was due. start: when it was sent; later if it had to wait for others.
        end: when its answer was over, or it failed; None: not yet.
        text_times: arrival of each event with text in it; a server may put several tokens into one.
        usage: tokens of prompt and answer, as the server says; None: it did not.
        error: why it failed.
    """

    scheduled: float
    max_tokens: int
    start: float
    end: float | None = None
    text_times: list[float] = field(default_factory=list)
    usage: tuple[int, int] | None = None
    finish_reason: str | None = None
    error: str | None = None

    @property
    def output_tokens(self) -> int:
        """Without usage, the events with text."""
        return len(self.text_times) if self.usage is None else self.usage[1]


class Chunk(NamedTuple):
    """What one event says."""

    text: bool
    finish_reason: str | None
    usage: tuple[int, int] | None
    error: str | None


def base_url(url: str) -> httpx.URL:
    """The address that ends with /v1. Raises InputError."""
    try:
        base = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise InputError(f"--url {url}: {error}: give one like http://127.0.0.1:1025") from None
    if base.scheme not in ("http", "https") or not base.host or base.query or base.fragment:
        raise InputError(f"--url {url}: is no server's address: give one like http://127.0.0.1:1025")
    path = base.path.rstrip("/")
    return base.copy_with(path=(path if path.endswith("/v1") else path + "/v1") + "/")


@asynccontextmanager
async def open_clients(url: str, api_key: str | None) -> AsyncIterator[Lend]:
    """Lends clients of one connection each, made when all others are lent, and kept open between requests.

    One client for all would look at each of its connections for each request: seconds in a run with hundreds of them.

    Raises:
        InputError: no URL.
    """
    base, certificates = base_url(url), httpx.create_ssl_context()
    headers = {"Accept-Encoding": "identity"}  # a compressed stream would arrive in other pieces
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    idle: list[httpx.AsyncClient] = []
    async with AsyncExitStack() as opened:

        @asynccontextmanager
        async def lend() -> AsyncIterator[httpx.AsyncClient]:
            if not idle:
                client = httpx.AsyncClient(
                    base_url=base, headers=headers, timeout=TIMEOUT, limits=LIMITS, verify=certificates
                )
                idle.append(await opened.enter_async_context(client))
            lent = idle.pop()
            try:
                yield lent
            finally:
                idle.append(lent)

        yield lend


async def first_model(client: httpx.AsyncClient) -> str:
    """The first of /v1/models. Raises InputError if nobody answers or nothing is listed."""
    where = f"{client.base_url}models"
    try:
        response = await client.get("models")
    except httpx.HTTPError as error:
        raise InputError(f"{where}: {_reason(error)}: start the server or correct --url") from None
    if response.status_code != httpx.codes.OK:
        raise InputError(f"{where}: {_refusal(response)}: correct --url or --api-key, or give --model")
    try:
        return str(response.json()["data"][0]["id"])
    except (ValueError, LookupError, TypeError):
        raise InputError(f"{where}: lists no model: give --model") from None


def request_body(endpoint: Endpoint, prompt: Prompt, model: str, options: dict[str, Any]) -> dict[str, Any]:
    """The request as JSON values."""
    body: dict[str, Any] = {"model": model, "max_tokens": prompt.max_tokens, "stream": True}
    body |= {"stream_options": {"include_usage": True}} | options
    if endpoint == "completions":
        return body | {"prompt": prompt.content}
    text = isinstance(prompt.content, str)
    return body | {"messages": [{"role": "user", "content": prompt.content}] if text else prompt.content}


async def send(client: httpx.AsyncClient, path: str, body: dict[str, Any], record: Record, origin: float) -> None:
    """Send, follow the answer to its end, and write down what happened; a failure is written down, too.

    Args:
        origin: ``time.perf_counter()`` at the measurement's start.
    """
    record.start = time.perf_counter() - origin
    try:
        async with client.stream("POST", path, json=body) as response:
            if response.status_code == httpx.codes.OK:
                record.error = await _follow(response, record, origin)
            else:
                await response.aread()
                record.error = _refusal(response)
    except httpx.HTTPError as error:
        record.error = _reason(error)
    record.end = time.perf_counter() - origin


async def _follow(response: httpx.Response, record: Record, origin: float) -> str | None:
    """Read to the end, so that the connection can be used again; what was wrong, or None."""
    done = False
    async for data in events(response.aiter_bytes()):
        arrival = time.perf_counter() - origin
        if data == b"[DONE]":
            done = True
            continue
        try:
            chunk = read_chunk(data)
        except (ValueError, TypeError, LookupError, AttributeError):
            return f"the stream holds something else than this API's events: {data[:100]!r}"
        if chunk.error is not None:
            return chunk.error
        if chunk.text:
            record.text_times.append(arrival)
        record.finish_reason = chunk.finish_reason or record.finish_reason
        record.usage = chunk.usage or record.usage
    return None if done or record.finish_reason else "the stream ended before the answer did"


async def events(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of each event, as soon as its line is complete, however the bytes were cut."""
    rest = b""
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line.removeprefix(b"data:").strip()


def read_chunk(data: bytes) -> Chunk:
    """One event of a chat or a completion. Raises ValueError, TypeError, LookupError, AttributeError if it is none."""
    content = json.loads(data)
    if content.get("error"):
        return Chunk(False, None, None, _message(content))
    usage = content.get("usage")
    counts = (int(usage["prompt_tokens"]), int(usage["completion_tokens"])) if usage else None
    if not content["choices"]:
        return Chunk(False, None, counts, None)
    choice = content["choices"][0]
    delta = choice.get("delta") or {}
    text = bool(choice.get("text")) or any(delta.get(name) for name in TEXTS)
    return Chunk(text, choice.get("finish_reason"), counts, None)


def _refusal(response: httpx.Response) -> str:
    try:
        text = _message(response.json())
    except (ValueError, AttributeError):
        text = response.text
    return f"HTTP {response.status_code}: {' '.join(text.split())[:300] or response.reason_phrase}"


def _message(content: dict[str, Any]) -> str:
    """Of an error object, as OpenAI or older servers write it."""
    error = content.get("error") or content
    return str(error.get("message") or error.get("detail") or error) if isinstance(error, dict) else str(error)


def _reason(error: httpx.HTTPError) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
