"""The built-in engine on this machine: requests together and one by one, the cost of HTTP, of scheduling, and vLLM.

    python scripts/bench_serve.py                                # the embedded model and a 1 B-parameter geometry
    python scripts/bench_serve.py --sizes embedded --rounds 3
    python scripts/bench_serve.py --write docs/benchmarks.md     # in the environment of scripts/test.sh vllm, with vLLM

The 1 B geometry has random bfloat16 weights with heads in the published proportions. A round asks for every kind of
batch in turn, so that a busy moment hits all alike, and ratios are taken within a round. HTTP: one request at a time
over a socket, streamed, against the same request to the engine. Scheduling: what a step of 64 decoding sequences takes
without the model. With vLLM installed, its engine runs the same shapes, compiled, in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import httpx
import torch

from ascend_m1 import BaichuanM1Config, BaichuanM1ForCausalLM
from ascend_m1.cli.options import EMBEDDED
from ascend_m1.inference import InferenceModel
from ascend_m1_serve.engine.core import Core, EngineOptions, make_core
from ascend_m1_serve.protocol import Sampling
from bench.machine import describe_machine
from bench.report import Spread, add_report_options, markdown_table, publish, ratios, write_section
from bench.schedule import decode_steps
from bench.serve_http import serving
from bench.vllm_engine import Engine

SECTION = "bench_serve"
REQUESTS, ALONE, PROMPT = 16, 4, 32
EMBEDDED_NAME = "embedded, float32"


@dataclass
class Size:
    """A model to measure, and what was found."""

    name: str
    folder: Path
    dtype: torch.dtype
    new: int
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def took(self, kind: str, seconds: float) -> None:
        """Note what a batch took."""
        self.seconds.setdefault(kind, []).append(seconds)


def billion(folder: Path) -> None:
    """config.json of a model of one billion parameters, its heads in the published proportions."""
    BaichuanM1Config(
        vocab_size=32000,
        hidden_size=2048,
        intermediate_size=6912,
        num_hidden_layers=16,
        num_attention_heads=8,
        num_key_value_heads=1,
        num_swa_attention_heads=16,
        num_swa_key_value_heads=4,
        sliding_window=1024,
        max_position_embeddings=2048,
        architectures=["BaichuanM1ForCausalLM"],
        dtype="bfloat16",
    ).save_pretrained(folder)


def load(size: Size) -> Core:
    """The engine; weights are random where the folder has none."""
    if (size.folder / "model.safetensors").exists():
        model = BaichuanM1ForCausalLM.from_pretrained(size.folder, dtype=size.dtype)
    else:
        torch.manual_seed(0)
        torch.set_default_dtype(size.dtype)
        model = BaichuanM1ForCausalLM(BaichuanM1Config.from_pretrained(size.folder))
        torch.set_default_dtype(torch.float32)
    inference = InferenceModel(model.eval(), 512)
    del model
    inference.pack_weights()
    return make_core(inference, EngineOptions(512, max_sequences=REQUESTS, prefix_caching=False))


def prompts() -> list[list[int]]:
    torch.manual_seed(0)
    return torch.randint(3, 1000, (REQUESTS, PROMPT)).tolist()


def run(core: Core, batch: list[list[int]], new: int) -> float:
    """Seconds for a batch, all at once."""
    start = time.perf_counter()
    for ids in batch:
        core.add(ids, Sampling(max_tokens=new, ignore_eos=True))
    while core.scheduler.busy:
        core.step()
    return time.perf_counter() - start


def engine_rounds(size: Size, core: Core, rounds: int, others: dict[str, Engine]) -> None:
    """All together and some one by one, ours and the others in turn."""
    batch = prompts()
    run(core, batch, 2)  # graphs and caches
    for other in others.values():
        other.run(True)
    for _ in range(rounds):
        size.took("together", run(core, batch, size.new))
        for name, other in others.items():
            size.took(f"{name} together", other.run(True).wall)
        size.took("one by one", sum(run(core, [ids], size.new) for ids in batch[:ALONE]))
        for name, other in others.items():
            size.took(f"{name} one by one", other.run(False).wall)


def http_rounds(size: Size, core: Core, rounds: int) -> None:
    """One request over HTTP, streamed, and the same in the engine."""
    ids = prompts()[0]
    body = {"prompt": ids, "max_tokens": size.new, "ignore_eos": True, "stream": True}
    with serving(core) as (url, direct), httpx.Client(base_url=url, timeout=600) as client:

        def ask() -> float:
            start = time.perf_counter()
            with client.stream("POST", "/v1/completions", json=body) as answer:
                answer.read()
            return time.perf_counter() - start

        ask()
        for _ in range(rounds):
            size.took("http", ask())
            size.took("engine", direct(ids, size.new))


def table(sizes: list[Size]) -> list[list[str]]:
    rows = []
    for size in sizes:
        s = size.seconds
        together = Spread.of([REQUESTS * size.new / t for t in s["together"]])
        rows.append([size.name, "16 together, tokens/s", together.show("{:.4g}".format), ""])
        single = Spread.of([ALONE * size.new / t for t in s["one by one"]])
        rows.append([size.name, "one by one, tokens/s", single.show("{:.4g}".format), ""])
        gain = ratios(s["one by one"], s["together"]).times(REQUESTS / ALONE)
        rows.append([size.name, "together against one by one", gain.show("{:.2f}".format), "5 or more"])
        overhead = ratios(s["http"], s["engine"])
        rows.append([size.name, "HTTP against the engine alone", overhead.show("{:.3f}".format), "1.05 or less, 1 B"])
        for kind in ("together", "one by one"):
            if f"vllm {kind}" in s:
                against = ratios(s[f"vllm {kind}"], s[kind])
                rows.append([size.name, f"speed of vLLM's, {kind}", against.show("{:.2f}".format), "1 or more"])
    return rows


def vllm_engines(size: Size, threads: int) -> dict[str, Engine]:
    """vLLM with weights of the same shapes, where it is installed and the model is large enough to say something."""
    if size.name == EMBEDDED_NAME or find_spec("vllm") is None:
        return {}
    return {"vllm": Engine(size.folder, REQUESTS, PROMPT, size.new, eager=False, threads=threads, alone=ALONE)}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=("embedded", "1b"), default=["embedded", "1b"])
    add_report_options(parser, SECTION, rounds=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    if arguments.write:
        write_section(arguments.write, SECTION, None)
    machine = describe_machine()
    with tempfile.TemporaryDirectory() as folder:
        billion(Path(folder))
        known = {
            "embedded": Size(EMBEDDED_NAME, EMBEDDED, torch.float32, 64),
            "1b": Size("1 B, bfloat16", Path(folder), torch.bfloat16, 32),
        }
        sizes = [known[name] for name in arguments.sizes]
        for size in sizes:
            print(f"{size.name}: measuring", file=sys.stderr)
            core = load(size)
            others = vllm_engines(size, arguments.threads)
            engine_rounds(size, core, arguments.rounds, others)
            for other in others.values():
                other.close()
            http_rounds(size, core, arguments.rounds)
    step = Spread.of(decode_steps(64, 200)).times(1000)
    machine["scheduling"] = f"a step of 64 sequences takes {step.show('{:.3f}'.format)} ms without the model (goal: 1)"
    header = ["model", "what", "median (quartiles)", "goal"]
    publish(machine, f"\n{markdown_table(header, table(sizes))}", arguments.write, SECTION)
    print(json.dumps({"machine": machine, "seconds": {size.name: size.seconds for size in sizes}}))


if __name__ == "__main__":
    main()
