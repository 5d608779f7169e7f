"""A service in a thread of this process: a real server over a real socket, the engine over the model that ships."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import uvicorn

from ascend_m1.cli.options import EMBEDDED
from ascend_m1_serve.api import ApiOptions, create_app
from ascend_m1_serve.api.mindie_common import MindieSettings
from ascend_m1_serve.engines import Prepared, Wanted, built_in, vllm
from ascend_m1_serve.front import Front

from ...vllm.limits import fork_engines

ENGINE = os.environ.get("ASCEND_M1_TEST_ENGINE", "built-in")
VLLM_SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else all engines share the first core
    "VLLM_LOGGING_LEVEL": "WARNING",
}
if ENGINE == "vllm":
    for name, value in VLLM_SETTINGS.items():
        os.environ.setdefault(name, value)
    fork_engines()


@dataclass
class Running:
    """A service's address and its inside, which belongs to the thread's loop."""

    url: str
    front: Front
    loop: asyncio.AbstractEventLoop

    def call(self, function: Callable[[], Any]) -> Any:
        """Run a function, or what it returns if that can be awaited, in the loop's thread."""

        async def run() -> Any:
            result = function()
            return await result if asyncio.iscoroutine(result) else result

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(60)


@lru_cache
def embedded(max_adapters: int = 0, **options: Any) -> Prepared:
    """The model that ships, in float32, in the built-in engine, or in the one that the environment names."""
    wanted = Wanted(EMBEDDED, device="cpu", dtype="float32", max_adapters=max_adapters, **options)
    if ENGINE == "vllm":
        return vllm(wanted, enforce_eager=True, gpu_memory_utilization=0.3)
    return built_in(wanted)


@contextmanager
def running(
    loaded: Prepared,
    options: ApiOptions | None = None,
    adapters: dict[str, Path] | None = None,
    max_queue: int = 256,
    settings: MindieSettings | None = None,
) -> Iterator[Running]:
    """A service under way; it is ended, and its engine too."""
    listener = socket.create_server(("127.0.0.1", 0))
    started, found = threading.Event(), list[Running]()
    servers = list[uvicorn.Server]()

    async def serve() -> None:
        engine = loaded.start()
        for name, folder in (adapters or {}).items():
            await engine.add_adapter(name, str(folder))
        front = Front(engine, loaded.tokenizer, "m1-icd10", loaded.defaults, max_queue)
        server = uvicorn.Server(uvicorn.Config(create_app(front, options, settings), log_config=None, access_log=False))
        servers.append(server)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        found.append(Running(url, front, asyncio.get_running_loop()))
        task = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        started.set()
        await task
        await engine.stop()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    assert started.wait(300)  # vLLM on a busy machine
    try:
        yield found[0]
    finally:
        servers[0].should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def wait_until(condition: Any) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("nothing happened in 12 s")
