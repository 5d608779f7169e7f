"""From a loaded model to a service that runs until it is told to stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .api import ApiOptions, create_app
from .api.app import PLANES, Plane
from .api.mindie_common import MindieSettings
from .engines import Prepared
from .errors import EngineError
from .front import MOST_CHOICES, Front
from .protocol import Engine
from .server import Address, serve, stop_serving

_WATCH_SECONDS = 0.5  # between two looks at the engine
_MORE_CONNECTIONS = 64  # for probes; and as many again as requests are taken, for clients that are idle or told 429
_FAILED_PATIENCE = 5  # seconds for the answers that tell of its failure


@dataclass(frozen=True)
class Service:
    """How a model is served.

    Attributes:
        name: of the model, as clients call it. addresses: of the planes; those that share one share a server.
        key: that requests must bring. max_queue: requests that may wait. max_body: bytes of a request.
        adapters: PEFT folders to load at the start, by name.
        max_input, truncate, max_new, max_choices, tell_times: see ``Front``.
        settings: of a config.json.
    """

    name: str
    addresses: dict[Plane, Address]
    key: str | None = None
    max_queue: int = 256
    max_body: int = 4 * 2**20
    adapters: dict[str, Path] = field(default_factory=dict)
    max_input: int | None = None
    truncate: int = 0
    max_new: int | None = None
    max_choices: int = MOST_CHOICES
    tell_times: bool = False
    settings: MindieSettings | None = None


def everywhere(address: Address) -> dict[Plane, Address]:
    """All planes on one address."""
    return dict.fromkeys(PLANES, address)


def serve_forever(loaded: Prepared, service: Service, on_start: Callable[[list[Address]], None]) -> None:
    """Until a signal, see ``server.serve``, or until the engine fails. Raises InputError, EngineError."""
    asyncio.run(_serve(loaded, service, on_start))


async def _serve(loaded: Prepared, service: Service, on_start: Callable[[list[Address]], None]) -> None:
    engine = loaded.start()
    try:
        for name, folder in service.adapters.items():
            await engine.add_adapter(name, str(folder))
        front = Front(
            engine,
            loaded.tokenizer,
            service.name,
            loaded.defaults,
            max_queue=service.max_queue,
            max_input=service.max_input,
            truncate=service.truncate,
            max_new=service.max_new,
            max_choices=service.max_choices,
            tell_times=service.tell_times,
        )

        def stop_taking() -> None:
            front.draining = True

        watching = asyncio.create_task(_stop_if_it_fails(engine))
        try:
            patience = int((service.settings or MindieSettings()).whole_timeout)
            connections = 2 * (engine.limits.max_sequences + service.max_queue) + _MORE_CONNECTIONS
            await serve(applications(front, service), stop_taking, on_start, patience, connections)
        finally:
            watching.cancel()
        if engine.failure is not None:
            raise EngineError(engine.failure)
    finally:
        await engine.stop()


async def _stop_if_it_fails(engine: Engine) -> None:
    """A process that can answer nothing any more ends, so that its manager starts another."""
    while engine.failure is None:
        await asyncio.sleep(_WATCH_SECONDS)
    stop_serving()
    await asyncio.sleep(_FAILED_PATIENCE)
    stop_serving()


def applications(front: Front, service: Service) -> list[tuple[Any, Address]]:
    """One for each address, with the planes that it has."""
    found = []
    for address in dict.fromkeys(service.addresses.values()):
        planes = [plane for plane, own in service.addresses.items() if own == address]
        options = ApiOptions(service.key, service.max_body, local=address.local)
        found.append((create_app(front, options, service.settings, planes), address))
    return found
