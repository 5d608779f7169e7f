"""From a loaded model to a service that runs until it is told to stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .api import ApiOptions, create_app
from .engine.service import BuiltInEngine
from .engines import BuiltIn
from .front import Front
from .server import Address, serve


@dataclass(frozen=True)
class Service:
    """How a model is served.

    Attributes:
        name: of the model, as clients call it. key: that requests must bring. max_queue: requests that may wait.
        max_body: bytes of a request. adapters: PEFT folders to load at the start, by name.
    """

    name: str
    address: Address
    key: str | None = None
    max_queue: int = 256
    max_body: int = 4 * 2**20
    adapters: dict[str, Path] = field(default_factory=dict)


def serve_forever(loaded: BuiltIn, service: Service, on_start: Callable[[], None]) -> None:
    """Until a signal; see ``server.serve``. Raises InputError."""
    asyncio.run(_serve(loaded, service, on_start))


async def _serve(loaded: BuiltIn, service: Service, on_start: Callable[[], None]) -> None:
    engine = BuiltInEngine(loaded.core, loaded.tokenizer)
    try:
        for name, folder in service.adapters.items():
            await engine.add_adapter(name, str(folder))
        front = Front(engine, loaded.tokenizer, service.name, loaded.defaults, service.max_queue)
        app = create_app(front, ApiOptions(service.key, service.max_body))

        def stop_taking() -> None:
            front.draining = True

        await serve([(app, service.address)], stop_taking, on_start)
    finally:
        await engine.stop()
