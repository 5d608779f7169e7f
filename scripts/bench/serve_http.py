"""A service over an engine's core, in a thread of this process."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from transformers import AutoTokenizer

from ascend_m1.cli.options import EMBEDDED
from ascend_m1_serve.api import create_app
from ascend_m1_serve.engine.core import Core
from ascend_m1_serve.engine.service import BuiltInEngine
from ascend_m1_serve.front import Front
from ascend_m1_serve.protocol import Sampling

Direct = Callable[[list[int], int], float]


@contextmanager
def serving(core: Core) -> Iterator[tuple[str, Direct]]:
    """Its address, and a function that takes a prompt to the engine alone: seconds for so many tokens."""
    listener = socket.create_server(("127.0.0.1", 0))
    started, servers = threading.Event(), list[uvicorn.Server]()
    engines, loops = list[BuiltInEngine](), list[asyncio.AbstractEventLoop]()
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)

    async def serve() -> None:
        engine = BuiltInEngine(core, tokenizer)
        engines.append(engine)
        loops.append(asyncio.get_running_loop())
        app = create_app(Front(engine, tokenizer, "model"))
        servers.append(uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False)))
        task = asyncio.create_task(servers[0].serve(sockets=[listener]))
        while not servers[0].started:
            await asyncio.sleep(0.01)
        started.set()
        await task
        await engine.stop()

    async def answer(ids: list[int], new: int) -> float:
        start = time.perf_counter()
        async for _ in engines[0].submit(ids, Sampling(max_tokens=new, ignore_eos=True)):
            pass
        return time.perf_counter() - start

    def direct(ids: list[int], new: int) -> float:
        return asyncio.run_coroutine_threadsafe(answer(ids, new), loops[0]).result()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    started.wait()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", direct
    finally:
        servers[0].should_exit = True
        thread.join()
