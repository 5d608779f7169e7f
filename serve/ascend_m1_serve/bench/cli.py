"""``ascend-m1 bench serve``: options, the measurement, and its results.

Status: 0 all requests completed, 1 one failed, 2 a wrong option, 130 stopped by Ctrl-C; what was measured until then is
printed and written.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import functools
import json
import math
import os
import platform
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ascend_m1.cli.options import note, write
from ascend_m1.errors import InputError

if TYPE_CHECKING:
    from .load import Load
    from .prompts import Prompt

DEFAULT_REQUESTS = 100
KEY_VARIABLES = ("ASCEND_M1_API_KEY", "OPENAI_API_KEY")  # the first one that is set
VERSIONS = ("ascend-m1", "httpx", "numpy")


def add_parser(commands: Any) -> None:
    """Declare ``bench`` and its sub-command ``serve``."""
    parser = commands.add_parser("bench", help="measure a server", description="Measure a server.")
    kinds = parser.add_subparsers(title="what to measure", metavar="KIND", required=True)
    serve = kinds.add_parser(
        "serve",
        help="throughput and latency of an OpenAI-compatible server",
        description="Sends requests to an OpenAI-compatible server, reads the answers as streams, and prints "
        "throughput and latency. Time to first token: from sending to the first text. Time per output token: from "
        "first text to last, by tokens less one. Inter-token latency: between events with text. End to end: from "
        "sending to the end. Wait before sending: what --concurrency, or this program, held a request back. Exit "
        "status 1: a request failed.",
    )
    _add_options(serve)
    serve.set_defaults(run=run)


def _add_options(parser: argparse.ArgumentParser) -> None:
    server = parser.add_argument_group("server")
    server.add_argument("--url", default="http://127.0.0.1:1025", help="(default: %(default)s)")
    server.add_argument("--model", metavar="NAME", help="as the server calls it (default: the first of /v1/models)")
    server.add_argument(
        "--api-key", metavar="KEY", help=f"(default: the environment's {' or '.join(KEY_VARIABLES)}, else none)"
    )
    server.add_argument("--endpoint", choices=("chat", "completions"), default="chat", help="(default: chat)")

    load = parser.add_argument_group("load")
    load.add_argument(
        "--requests",
        type=int,
        metavar="N",
        help=f"how many (default: {DEFAULT_REQUESTS}, or all in --dataset; more than those repeat)",
    )
    load.add_argument(
        "--rate", type=float, default=math.inf, metavar="R", help="requests/s, a Poisson process (default: all at once)"
    )
    load.add_argument(
        "--burstiness",
        type=float,
        default=1.0,
        metavar="B",
        help="gamma shape of the gaps at --rate; below 1: bursts, above: more even (default: 1, Poisson)",
    )
    load.add_argument("--concurrency", type=int, metavar="C", help="the most at once (default: no limit)")
    load.add_argument("--warmup", type=int, default=0, metavar="N", help="requests before, not measured (default: 0)")
    load.add_argument("--seed", type=int, default=0, metavar="N", help="of lengths, words, order, gaps (default: 0)")

    asked = parser.add_argument_group(
        "prompts and answers", "a LENGTH is a number, a uniform range like 64:256, or lognormal:MEAN:STD"
    )
    asked.add_argument(
        "--input-len", metavar="LENGTH", help="random words in a prompt; tokens, with --tokenizer (default: 128)"
    )
    asked.add_argument(
        "--output-len",
        default="128",
        metavar="LENGTH",
        help="max_tokens, where --dataset does not state it (default: 128)",
    )
    asked.add_argument(
        "--dataset",
        metavar="FILE",
        help="prompts instead of random words: JSONL with prompt or messages, and perhaps max_tokens; or ShareGPT's "
        "JSON, where --tokenizer makes the recorded answers' lengths the most to answer",
    )
    asked.add_argument("--tokenizer", metavar="DIR", help="the model's, to count in tokens")
    asked.add_argument("--ignore-eos", action="store_true", help="answers as long as allowed, if the server knows this")
    asked.add_argument("--temperature", type=float, metavar="T", help="(default: the server's)")

    results = parser.add_argument_group("results")
    results.add_argument("--json", metavar="FILE", help="write versions, options, summary and every request")
    results.add_argument("--plot", metavar="FILE.png", help="draw requests under way, and latencies")


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, write."""
    check(arguments)
    from .load import Load
    from .report import summarize, table

    prompts, warmup = _prompts(arguments)
    load = Load()
    interrupted = False
    try:
        asyncio.run(_measure(arguments, prompts, warmup, load))
    except KeyboardInterrupt:
        if load.duration is None:  # not even begun
            raise
        interrupted = True
    assert load.duration is not None
    summary = summarize(load.records, load.duration)
    write(table(summary))
    _write_results(arguments, load, summary)
    if interrupted:
        return 130
    return 1 if summary["failed"] else 0


def check(arguments: argparse.Namespace) -> None:
    """Look at everything that can be wrong before anything is sent. Raises InputError."""
    for name, least in (("requests", 1), ("concurrency", 1), ("warmup", 0), ("seed", 0)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise InputError(f"--{name} {value}: give {least} or more")
    if not arguments.rate > 0:
        raise InputError(f"--rate {arguments.rate:g}: give requests per second above 0, or inf")
    if not 0 < arguments.burstiness < math.inf:
        raise InputError(f"--burstiness {arguments.burstiness:g}: give a number above 0")
    if arguments.temperature is not None and not 0 <= arguments.temperature < math.inf:
        raise InputError(f"--temperature {arguments.temperature:g}: give 0 or more")
    if arguments.dataset is not None and arguments.input_len is not None:
        raise InputError("--dataset holds the prompts and --input-len makes them: give one of them")
    for option, file in (("--json", arguments.json), ("--plot", arguments.plot)):
        if file is not None and not Path(file).parent.is_dir():
            raise InputError(f"{option} {file}: there is no folder {Path(file).parent}: make it")
    if arguments.plot is not None and Path(arguments.plot).suffix != ".png":
        raise InputError(f"--plot {arguments.plot}: is drawn as PNG: give a name that ends with .png")
    needed = ["httpx"] + ["matplotlib"] * (arguments.plot is not None)
    absent = [name for name in needed if find_spec(name) is None]
    if absent:
        raise InputError(f"{' and '.join(absent)} missing: pip install {' '.join(absent)}")


def _prompts(arguments: argparse.Namespace) -> tuple[list[Prompt], list[Prompt]]:
    """Those to measure, and others to warm up with."""
    from .prompts import open_tokenizer, random_prompts, read_prompts

    tokenizer = None if arguments.tokenizer is None else open_tokenizer(arguments.tokenizer)
    if arguments.dataset is None:
        count = arguments.requests or DEFAULT_REQUESTS
        length = arguments.input_len or "128"
        found = random_prompts(count + arguments.warmup, length, arguments.output_len, arguments.seed, tokenizer)
        return found[:count], found[count:]
    chat = arguments.endpoint == "chat"
    held = read_prompts(arguments.dataset, arguments.output_len, arguments.seed, chat, tokenizer)
    count = arguments.requests or len(held)
    if count + arguments.warmup > len(held):
        note(f"{arguments.dataset} holds {len(held)} prompts: they repeat, and a server that remembers is faster")
    found = [held[i % len(held)] for i in range(count + arguments.warmup)]
    return found[:count], found[count:]


async def _measure(arguments: argparse.Namespace, prompts: list[Prompt], warmup: list[Prompt], load: Load) -> None:
    """Fill in ``load``. Raises InputError if warming up fails."""
    from ..open_files import allow_connections
    from .client import PATHS, Record, first_model, open_clients, request_body, send
    from .load import Load, arrival_times, offer

    key = next(filter(None, [arguments.api_key, *map(os.environ.get, KEY_VARIABLES)]), None)
    options: dict[str, Any] = {}
    if arguments.ignore_eos:
        options["ignore_eos"] = True
    if arguments.temperature is not None:
        options["temperature"] = arguments.temperature
    most = max(len(prompts), len(warmup))
    allow_connections(min(arguments.concurrency or most, most))
    async with open_clients(arguments.url, key) as lend:
        if arguments.model is None:
            async with lend() as client:
                arguments.model = await first_model(client)

        async def ask(prompt: Prompt, record: Record, origin: float) -> None:
            body = request_body(arguments.endpoint, prompt, arguments.model, options)
            async with lend() as client:
                await send(client, PATHS[arguments.endpoint], body, record, origin)

        measure = functools.partial(offer, ask, concurrency=arguments.concurrency)
        warm = Load()
        if warmup:
            await measure(warmup, [0.0] * len(warmup), load=warm)
        for record in warm.records:
            if record.error is not None:
                raise InputError(f"warming up: {record.error}: mend the server, or leave --warmup out")
        note(f"{len(prompts)} requests to {arguments.url}, model {arguments.model}")
        arrivals = arrival_times(len(prompts), arguments.rate, arguments.burstiness, arguments.seed)
        await measure(prompts, arrivals, load=load)


def _write_results(arguments: argparse.Namespace, load: Load, summary: dict[str, Any]) -> None:
    if arguments.json is not None:
        from ascend_m1.environment import installed

        from .report import as_dict

        options = {name: value for name, value in vars(arguments).items() if name not in ("run", "api_key", "version")}
        options["rate"] = None if arguments.rate == math.inf else arguments.rate  # JSON has no infinity
        content = {
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "versions": {"python": platform.python_version()} | {name: installed(name) for name in VERSIONS},
            "arguments": options,
            "summary": summary,
            "requests": [as_dict(record) for record in load.records],
        }
        path = Path(arguments.json)
        beside = path.with_name(f".{path.name}.part")
        try:
            beside.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
    if arguments.plot is not None:
        from .plot import draw

        title = f"{arguments.model} at {arguments.url}"
        draw(load.records, summary["duration"], title, Path(arguments.plot))
