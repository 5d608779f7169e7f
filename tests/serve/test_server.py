"""Addresses, certificates and the end of ``server.serve``."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from ascend_m1.errors import InputError
from ascend_m1_serve.server import Address, check, serve


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def test_one_port_of_all_addresses_and_of_one() -> None:
    port = free_port()
    with pytest.raises(InputError, match=f"127.0.0.2:{port}: Address already in use: choose another address or port"):
        check([Address("0.0.0.0", port), Address("127.0.0.2", port)])
    check([Address("127.0.0.1", port), Address("127.0.0.2", port), Address("127.0.0.1", port)])


def test_a_key_with_a_password(tmp_path: Path) -> None:
    """OpenSSL would ask for it at the terminal."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-passout", "pass:secret", "-days", "1", "-subj", "/CN=x",
         "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    with pytest.raises(InputError, match=r"key.pem: cannot be used as .*: give PEM files .* without a password"):
        check([Address("127.0.0.1", 0, certificate, key)])


def test_what_does_not_come_to_its_end_is_broken_off() -> None:
    """A client that sends no more of its body, one that reads no more of its answer."""
    asked: list[str] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        asked.append(scope["path"])
        while scope["path"] == "/body":
            await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"x" * 2**20, "more_body": True})

    async def scenario() -> float:
        clients: list[socket.socket] = []

        def start(addresses: list[Address]) -> None:
            for path in ("body", "answer"):
                client = socket.create_connection(("127.0.0.1", addresses[0].port))
                client.sendall(b"POST /%s HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nx" % path.encode())
                clients.append(client)

        async def end() -> float:
            while len(asked) < 2:
                await asyncio.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)
            return time.monotonic()

        ending = asyncio.create_task(end())
        await asyncio.wait_for(serve([(app, Address("127.0.0.1", 0))], lambda: None, start, patience=1), 30)
        for client in clients:
            client.close()
        return time.monotonic() - await ending

    assert 1 <= asyncio.run(scenario()) < 15


HEAD = b"POST /whole HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"


async def answer(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """At once, without the body; /slow after a while."""
    if scope["type"] == "http":
        await asyncio.sleep(0.8 if scope["path"] == "/slow" else 0)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


def with_clients(use: Callable[[int], Any], **options: Any) -> Any:
    """What ``use`` of the port, in a thread of its own, returns; the server is ended."""

    async def scenario() -> Any:
        started = asyncio.get_running_loop().create_future()
        begin = lambda addresses: started.set_result(addresses[0].port)  # noqa: E731
        serving = asyncio.create_task(serve([(answer, Address("127.0.0.1", 0))], lambda: None, begin, **options))
        try:
            return await asyncio.to_thread(use, await started)
        finally:
            signal.raise_signal(signal.SIGTERM)
            await asyncio.wait_for(serving, 30)

    return asyncio.run(scenario())


def dripped(port: int, first: bytes, rest: bytes) -> tuple[bytes, float]:
    """What comes back until the server closes the connection, and the seconds; a byte is sent each tenth of one."""
    begun, got = time.monotonic(), b""
    with socket.create_connection(("127.0.0.1", port), 10) as client:
        client.sendall(first)
        client.settimeout(0.1)
        for index in range(100):
            try:
                more = client.recv(4096)
                if not more:
                    break
                got += more
            except TimeoutError:
                client.sendall(rest[index : index + 1])
            except ConnectionError:
                break
        return got, time.monotonic() - begun


@pytest.mark.parametrize(
    ("first", "rest", "answers"),
    [
        (b"", b"", 0),
        (HEAD[:20], b"", 0),
        (b"GET / HTTP/1.1\r\n", b"X: " + b"y" * 100, 0),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", HEAD[:-4] + b"y" * 100, 1),  # the second request's
        (HEAD, b"y" * 99, 1),  # a body that was answered before it came
    ],
    ids=["nothing", "half a head", "a slow head", "the next head", "a slow body"],
)
def test_what_does_not_come_is_not_waited_for(first: bytes, rest: bytes, answers: int) -> None:
    got, seconds = with_clients(lambda port: dripped(port, first, rest), head_seconds=0.5)
    assert got.count(b"HTTP/1.1 200 OK") == answers
    assert 0.5 <= seconds < 5


def test_an_answer_may_take_longer_than_a_head() -> None:
    def ask(port: int) -> list[int]:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            return [client.post(path, content=b"x").status_code for path in ("/slow", "/", "/slow")]

    assert with_clients(ask, head_seconds=0.5) == [200, 200, 200]


def test_connections_have_a_limit() -> None:
    def ask(port: int) -> tuple[bytes, bytes]:
        clients = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(3)]
        refused = clients[2].recv(4096)
        clients[0].close()
        time.sleep(0.2)
        with socket.create_connection(("127.0.0.1", port), 10) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            taken = client.recv(4096)
        clients[1].close()
        return refused, taken

    refused, taken = with_clients(ask, connections=2)
    assert refused.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nRetry-After: 1\r\n" in refused
    assert taken.startswith(b"HTTP/1.1 200 ")
