"""Runs applications on their addresses until a signal, then lets what was begun come to its end."""

from __future__ import annotations

import asyncio
import ipaddress
import signal
import socket
import ssl
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from ascend_m1.errors import InputError

from .connection import Connection
from .open_files import allow_connections

HEAD_SECONDS = 60


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


_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class _Server(uvicorn.Server):
    """Leaves signals to whoever runs all servers: uvicorn's own handler knows of one."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(address: Address) -> socket.socket:
    """A listening socket. Raises InputError if the address cannot be had."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address.host, address.port))
        listener.listen()  # fails, as bind may not, where another socket has the same port of all addresses
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{address.host}:{address.port}: {reason}: choose another address or port") from None
    return listener


def load_certificate(certificate: Path, key: Path) -> None:
    """Raises OSError, of which ssl.SSLError is one, if they do not belong together or the key has a password."""
    # The password keeps OpenSSL from asking at the terminal.
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")


def check(addresses: Collection[Address]) -> None:
    """Raises InputError if ``serve`` could not listen there now; nothing listens afterwards."""
    with ExitStack() as listeners:
        for address in dict.fromkeys(addresses):
            _check_certificate(address)
            listeners.enter_context(bind(address))


def stop_serving() -> None:
    """As a signal from outside: the first time connections may come to their end, the second time not."""
    signal.raise_signal(signal.SIGTERM)


async def serve(
    apps: list[tuple[Any, Address]],
    on_signal: Callable[[], None],
    on_start: Callable[[list[Address]], None],
    patience: int = 600,
    connections: int = 1000,
    head_seconds: float = HEAD_SECONDS,
) -> None:
    """Returns when every connection is done after SIGTERM or SIGINT; at once after the second one.

    Args:
        apps: ASGI applications and their addresses.
        on_signal: called at the first signal, before anything is closed.
        on_start: called when all listen, with their addresses; a port of 0 has become one that was free.
        patience: seconds after the signal in which connections may come to their end; what is left is broken off.
        connections: to each address at the same time; more are refused. head_seconds: see ``Connection``.

    Raises:
        InputError: an address cannot be had, or the certificate cannot be read.
    """
    servers: list[_Server] = []

    def stop() -> None:
        on_signal()
        for server in servers:
            server.force_exit = server.should_exit
            server.should_exit = True

    allow_connections(connections * len(apps))
    protocol = partial(Connection, seconds=head_seconds, most=connections)
    listeners = [bind(address) for _, address in apps]
    loop = asyncio.get_running_loop()
    try:
        servers += [_Server(_config(app, address, patience, protocol)) for app, address in apps]
        for number in _SIGNALS:
            loop.add_signal_handler(number, stop)
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
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
        for listener in listeners:
            listener.close()


def _config(app: Any, address: Address, patience: int, protocol: Any) -> uvicorn.Config:
    _check_certificate(address)
    config = uvicorn.Config(
        app,
        http=protocol,
        log_config=None,
        access_log=False,
        server_header=False,
        ssl_certfile=address.certificate,
        ssl_keyfile=address.key,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=patience,
    )
    config.load()
    return config


def _check_certificate(address: Address) -> None:
    if address.certificate is None or address.key is None:
        return
    try:
        load_certificate(address.certificate, address.key)
    except OSError as error:
        raise InputError(
            f"{address.certificate}, {address.key}: cannot be used as certificate and key ({error.strerror or error}): "
            "give PEM files that belong together, the key without a password"
        ) from None
