"""Abuses a running server and looks what it leaves: malformed bodies, clients that go away or do not read, long load.

    ascend-m1 serve --max-adapters 1 &
    python scripts/soak_server.py --pid $! --bodies 10000 --seconds 900

Any answer of 5xx but 503 is a failure, as are blocks of the cache that are not given back, requests that stay open, and
memory that keeps growing (more than --growth MiB from the second tenth of the time to the end). The last line is JSON;
the exit status is 1 if anything was found.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "What does ICD-10-CM code J45 mean?"}]}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        **CHAT,
        **{"temperature": 0.5, "n": 1, "stop": ["x"], "logprobs": True, "top_logprobs": 2},
        "chat_template_kwargs": {"enable_thinking": False},
    },
    "/v1/completions": {
        **{"prompt": "Asthma", "max_tokens": 4, "seed": 1, "logprobs": 1, "best_of": 2},
        "logit_bias": {"5": 1.0},
    },
    "/generate": {"prompt": "Asthma", "max_tokens": 4, "top_k": 2, "stop": ["x"]},
    "/generate_stream": {"inputs": "Asthma", "parameters": {"max_new_tokens": 4, "details": True}},
    "/infer": {"inputs": "Asthma", "stream": False, "parameters": {"max_new_tokens": 4, "priority": 2}},
    "/infer_token": {"input_id": [1, 2, 3], "parameters": {"max_new_tokens": 4}},
    "/v1/tokenizer": {"inputs": "Asthma", "do_decode": True},
    "/v2/models/m1-icd10/generate": {"id": "a", "text_input": "Asthma", "parameters": {"max_new_tokens": 4}},
    "/v2/models/m1-icd10/infer": {
        "inputs": [{"name": "input0", "shape": [1, 2], "datatype": "UINT32", "data": [1, 2]}],
        "parameters": {"max_new_tokens": 4},
    },
    "/v2/models/m1-icd10/stopInfer": {"id": "a"},
    "/v1/unload_lora_adapter": {"lora_name": "x"},
    "/v1/load_lora_adapter": {"lora_name": "x", "lora_path": "/nowhere"},
}
OTHER_FIELDS = (
    *("extra", "response_format", "structured_outputs", "stream_options", "tools", "chat_template", "messages"),
    *("continue_final_message", "use_beam_search", "best_of", "logit_bias"),
)
NASTY: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, -(2**70), 0.0, -0.5, 1e308, 1e-320, "", "x", "\ud800", "\0"),
    *(5e-324, 10**400, "{{ 1/0 }}", {"1" * 5000: 1.0}),
    *([], {}, [[]], [None], {"": {}}, ["x"] * 50, "x" * 5000, [1] * 2000, {"type": "json_schema"}, {"regex": "("}),
]


def nasty(choose: random.Random) -> Any:
    """A copy of one of them, which others can be put into."""
    return copy.deepcopy(choose.choice(NASTY))


def damaged(choose: random.Random, body: dict[str, Any]) -> bytes:
    """A body with one to three fields replaced, removed, added or nested; sometimes no JSON any more."""
    found: Any = json.loads(json.dumps(body))
    for _ in range(choose.randint(1, 3)):
        place = found
        while isinstance(place, dict) and place and choose.random() < 0.4:
            inner = choose.choice(list(place.values()))
            if not isinstance(inner, (dict, list)):
                break
            place = inner
        if isinstance(place, dict):
            name = choose.choice([*place, *OTHER_FIELDS])
            if choose.random() < 0.2:
                place.pop(name, None)
            else:
                place[name] = nasty(choose)
        elif isinstance(place, list) and place:
            place[choose.randrange(len(place))] = nasty(choose)
    text = json.dumps(found).encode()
    kind = choose.random()
    if kind < 0.05:
        return text[: choose.randrange(len(text))]
    if kind < 0.08:
        return choose.randbytes(choose.randint(0, 200))
    return text.replace(b"1e-320", b"NaN") if kind < 0.1 else text


class Findings:
    """Statuses by path, and what is wrong."""

    def __init__(self) -> None:
        self.statuses: Counter[int] = Counter()
        self.problems: list[str] = []

    def answered(self, path: str, status: int, body: bytes = b"") -> None:
        """Note an answer."""
        self.statuses[status] += 1
        if status >= 500 and status != 503:
            self.problems.append(f"{path}: {status}: {body[:300]!r}")


async def malformed(client: httpx.AsyncClient, count: int, found: Findings) -> None:
    """So many bodies, eight at a time."""
    choose = random.Random(0)
    paths = list(BODIES)

    async def some(numbers: range) -> None:
        for _ in numbers:
            path = choose.choice(paths)
            body = damaged(choose, BODIES[path])
            answer = await client.post(path, content=body)
            found.answered(path, answer.status_code, answer.content + b" of " + body)

    await asyncio.gather(*(some(range(index, count, 8)) for index in range(8)))


async def one_client(client: httpx.AsyncClient, number: int, end: float, found: Findings) -> None:
    """Whole answers, streams read to their end, left half-way, or not read for a while."""
    choose = random.Random(number)
    while time.monotonic() < end:
        kind, path = choose.random(), "/v1/completions"
        body = {"prompt": "Asthma " * choose.randint(1, 60), "max_tokens": choose.randint(1, 80), "ignore_eos": True}
        body |= {"temperature": choose.choice([0.0, 1.0]), "n": choose.randint(1, 3)}
        if kind < 0.4:
            answer = await client.post(path, json=body)
            found.answered(path, answer.status_code, answer.content)
            continue
        async with client.stream("POST", path, json={**body, "stream": True}) as answer:
            found.answered(path, answer.status_code)
            left = choose.randint(1, 10) if kind < 0.7 else 10**9
            async for _ in answer.aiter_raw():
                left -= 1
                if left <= 0:
                    break
                if kind > 0.95:
                    await asyncio.sleep(0.2)


async def load(client: httpx.AsyncClient, seconds: int, pid: int, found: Findings) -> list[float]:
    """Twelve clients; the server's memory in MiB, noted twenty times."""
    end = time.monotonic() + seconds
    clients = [asyncio.create_task(one_client(client, number, end, found)) for number in range(12)]
    memory = []
    for index in range(20):
        await asyncio.sleep(seconds / 20)
        memory.append(resident(pid))
        print(f"{(index + 1) * seconds // 20} s: {memory[-1]:.0f} MiB, {dict(found.statuses)}", file=sys.stderr)
    await asyncio.gather(*clients)
    return memory


def resident(pid: int) -> float:
    """MiB in memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / 2**20


async def left_over(client: httpx.AsyncClient) -> list[str]:
    """What is still held ten seconds after the last client has gone: answers, places, blocks."""
    stats: dict[str, Any] = {}
    for _ in range(100):
        stats = (await client.get("/stats")).json()
        held = stats["open"] + stats["running"] + stats["waiting"] + stats["swapped"]
        if not held and stats["free_blocks"] == stats["blocks"]:
            return []
        await asyncio.sleep(0.1)
    return [f"left over: {stats}"]


async def soak(arguments: argparse.Namespace) -> int:
    found = Findings()
    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(base_url=arguments.url, timeout=120, limits=limits) as client:
        await malformed(client, arguments.bodies, found)
        found.problems += await left_over(client)
        memory = await load(client, arguments.seconds, arguments.pid, found) if arguments.seconds else [0.0]
        found.problems += await left_over(client)
    growth = memory[-1] - memory[min(2, len(memory) - 1)]
    if growth > arguments.growth:
        found.problems.append(f"memory grew by {growth:.0f} MiB")
    for problem in found.problems[:20]:
        print(problem, file=sys.stderr)
    print(json.dumps({"statuses": found.statuses, "memory_mib": memory, "problems": len(found.problems)}))
    return bool(found.problems)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:1025")
    parser.add_argument("--pid", type=int, required=True, help="of the server, for its memory")
    parser.add_argument("--bodies", type=int, default=10000, help="malformed ones")
    parser.add_argument("--seconds", type=int, default=900, help="of load")
    parser.add_argument("--growth", type=float, default=16, metavar="MiB", help="of memory, that is still flat")
    return asyncio.run(soak(parser.parse_args()))


if __name__ == "__main__":
    raise SystemExit(main())
