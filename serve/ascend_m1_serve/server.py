"""Runs applications on their addresses until a signal, then lets what was begun come to its end."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from ascend_m1.errors import InputError


@dataclass(frozen=True)
class Address:
    """Where an application listens.

    Attributes:
        certificate, key: PEM files; without them it speaks plain HTTP.
    """

    host: str
    port: int
    certificate: Path | None = None
    key: Path | None = None

    @property
    def url(self) -> str:
        """For people."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.certificate else 'http'}://{host}:{self.port}"

    @property
    def local(self) -> bool:
        """Whether this machine alone reaches it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


class _Server(uvicorn.Server):
    """Gives signals to whoever runs all servers: uvicorn's own handler knows of one."""

    def __init__(self, config: uvicorn.Config, on_signal: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_signal = on_signal

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._on_signal()


def bind(address: Address) -> socket.socket:
    """A listening socket. Raises InputError if the address cannot be had."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address.host, address.port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{address.host}:{address.port}: {reason}: choose another address or port") from None
    return listener


async def serve(
    apps: list[tuple[Any, Address]], on_signal: Callable[[], None], on_start: Callable[[list[Address]], None]
) -> None:
    """Returns when every connection is done after SIGTERM or SIGINT; at once after the second one.

    Args:
        apps: ASGI applications and their addresses.
        on_signal: called at the first signal, before anything is closed.
        on_start: called when all listen, with their addresses; a port of 0 has become one that was free.

    Raises:
        InputError: an address cannot be had, or the certificate cannot be read.
    """
    servers: list[_Server] = []

    def stop() -> None:
        on_signal()
        for server in servers:
            server.force_exit = server.should_exit
            server.should_exit = True

    listeners = [bind(address) for _, address in apps]
    try:
        servers += [_Server(_config(app, address), stop) for app, address in apps]
        tasks = [
            asyncio.create_task(server.serve(sockets=[listener]))
            for server, listener in zip(servers, listeners, strict=True)
        ]
        while not all(server.started for server in servers):
            if any(task.done() for task in tasks):
                break
            await asyncio.sleep(0.01)
        else:
            ports = [listener.getsockname()[1] for listener in listeners]
            on_start([replace(address, port=port) for (_, address), port in zip(apps, ports, strict=True)])
        await asyncio.gather(*tasks)
    finally:
        for listener in listeners:
            listener.close()


def _config(app: Any, address: Address) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        ssl_certfile=address.certificate,
        ssl_keyfile=address.key,
        timeout_keep_alive=75,
    )
    try:
        config.load()
    except OSError as error:
        raise InputError(
            f"{address.certificate}, {address.key}: cannot be used as certificate and key ({error.strerror or error}): "
            "give PEM files that belong together"
        ) from None
    return config
