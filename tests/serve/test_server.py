"""Addresses, certificates and the end of ``server.serve``."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

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
