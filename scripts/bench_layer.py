"""Speed of Baichuan-M1's layers beside a plain transformers decoder of the same size and beside the machine's limits.

    python scripts/bench_layer.py                                   # all cells, prints the table
    python scripts/bench_layer.py --dtype bfloat16 --task decode    # some of them
    python scripts/bench_layer.py --write docs/benchmarks.md        # puts the table into the document

In every round each contender runs once, in changing order, together with a probe of the machine: reading the weights
(decode) or a large matrix product (prefill). Ratios are taken within a round, then the median over the rounds is shown.
Nothing is measured if the model disagrees with its reference.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bench.check import check_model, small_model
from bench.machine import describe_machine, matmul_probe, read_probe
from bench.models import contenders, layer_parameters, m1_pair, plain_pair
from bench.report import Spread, markdown_table, ratios, write_section

SECTION = "bench_layer"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
CLAIM = 0.9  # of the plain decoder's speed, at least
HEADER = [
    "cell",
    "ours, tokens/s",
    "plain",
    "tuned",
    "ours / plain",
    "ours / tuned",
    "ours / limit",
    "tuned / limit",
    "rounds",
]


@dataclass(frozen=True)
class Cell:
    """One line of the table."""

    dtype: str
    task: str
    batch: int
    tokens: int

    @property
    def name(self) -> str:
        what = "cached" if self.task == "decode" else "prompt"
        return f"{self.dtype} {self.task}, batch {self.batch}, {self.tokens} {what}"

    @property
    def tokens_done(self) -> int:
        return self.batch * (1 if self.task == "decode" else self.tokens)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--task", nargs="+", choices=["decode", "prefill"], default=["decode", "prefill"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="batch sizes of decoding")
    parser.add_argument("--context", type=int, nargs="+", default=[512, 4096], help="cached tokens when decoding")
    parser.add_argument("--prompt", type=int, nargs="+", default=[512, 2048], help="tokens of a prefill (batch 1)")
    parser.add_argument("--rounds", type=int, default=15, help="most rounds of a cell")
    parser.add_argument("--seconds", type=float, default=10, help="time of a cell, three rounds at least")
    parser.add_argument("--threads", type=int, help="threads (default: PyTorch's choice)")
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: time of this process alone, for a machine busy with other work; use it with --threads 1",
    )
    parser.add_argument("--write", type=Path, metavar="FILE", help=f"document with a place <!-- {SECTION} --> to fill")
    return parser.parse_args(argv)


def cells_of(arguments: argparse.Namespace, dtype: str) -> list[Cell]:
    """The cells asked for."""
    cells = []
    if "decode" in arguments.task:
        cells += [Cell(dtype, "decode", batch, context) for batch in arguments.batch for context in arguments.context]
    if "prefill" in arguments.task:
        cells += [Cell(dtype, "prefill", 1, prompt) for prompt in arguments.prompt]
    return cells


def measure(
    steps: dict[str, Callable[[], object]], rounds: int, seconds: float, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds of each step in each round. ``plain`` may be very slow, and then takes part in the first rounds only."""
    samples: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    deadline = time.perf_counter() + seconds
    for index in range(rounds):
        if index >= 3 and time.perf_counter() > deadline:
            break
        turn = index % len(names)
        for name in names[turn:] + names[:turn]:
            if name == "plain" and index and sum(samples[name]) > seconds / 4:
                continue
            start = clock()
            steps[name]()
            samples[name].append(clock() - start)
    return samples


def result_of(cell: Cell, samples: dict[str, list[float]], work: dict[str, int]) -> dict[str, Any]:
    """Tokens/s, ratios and shares of the limit, as ``Spread``s by name. work: bytes or operations of each contender."""
    result: dict[str, Any] = {}
    for name in ("ours", "plain", "tuned"):
        result[name] = Spread.of([cell.tokens_done / value for value in samples[name]])
        result[f"{name}_of_limit"] = ratios(samples["limit"], samples[name]).times(work[name] / work["limit"])
        result[f"{name}_ms"] = Spread.of(samples[name]).times(1e3)
    result["to_plain"] = ratios(samples["plain"], samples["ours"])
    result["to_tuned"] = ratios(samples["tuned"], samples["ours"])
    result["limit"] = Spread.of([work["limit"] / value / 1e9 for value in samples["limit"]])
    result["rounds"] = len(samples["ours"])
    return result


def work_of(cell: Cell, ours: Any, plain: Any) -> dict[str, int]:
    """Bytes that a decode step must read (weights and cache), or operations of a prefill's linear layers."""
    work = {}
    for name, model in (("ours", ours), ("tuned", plain)):
        weights = layer_parameters(model)
        if cell.task == "prefill":
            work[name] = 2 * cell.tokens * sum(weight.numel() for weight in weights)
            continue
        sizes = _cache_width(model.config)
        cached = cell.batch * cell.tokens * sizes * weights[0].element_size()
        work[name] = sum(weight.nbytes for weight in weights) + cached
    return work | {"plain": work["tuned"]}


def _cache_width(config: Any) -> int:
    """Numbers that both layers together keep per token."""
    if hasattr(config, "layer_specs"):
        return sum(2 * spec.kv_size for spec in config.layer_specs)
    return int(config.num_hidden_layers * 2 * config.num_key_value_heads * config.head_dim)


@torch.no_grad()
def run_dtype(dtype: str, arguments: argparse.Namespace) -> tuple[dict[Cell, dict[str, Any]], str]:
    """All cells of one dtype, and a line on the models and the check."""
    small = check_model(small_model(DTYPES[dtype]))
    ours = m1_pair(DTYPES[dtype])
    large = check_model(ours)
    plain = plain_pair(ours)
    counts = [sum(weight.numel() for weight in layer_parameters(model)) for model in (ours, plain)]
    note = (
        f"{dtype}: {counts[0]:,} parameters in our pair of layers, {counts[1]:,} in the plain pair "
        f"({counts[0] / counts[1]:.3f}); error against the reference {small:.0e} (small), {large:.0e} (measured model)"
    )
    print(note, flush=True)
    probes = {"decode": read_probe(layer_parameters(ours)), "prefill": matmul_probe(DTYPES[dtype])}
    results = {}
    for cell in cells_of(arguments, dtype):
        steps: dict[str, Callable[[], object]] = {
            c.name: c.decode(cell.batch, cell.tokens) if cell.task == "decode" else c.prefill(cell.batch, cell.tokens)
            for c in contenders(ours, plain)
        }
        steps["limit"], most = probes[cell.task]
        if cell.task == "decode":
            for name in ("ours", "tuned"):
                steps[name]()  # their caches make room at the first step
        samples = measure(steps, arguments.rounds, arguments.seconds, CLOCKS[arguments.clock])
        results[cell] = result_of(cell, samples, work_of(cell, ours, plain) | {"limit": most})
        print(" | ".join(row_of(cell, results[cell])), flush=True)
    return results, note


def row_of(cell: Cell, result: dict[str, Any]) -> list[str]:
    """The table's row."""
    limit = result["limit"].middle
    unit = f"{limit:.1f} GB/s" if cell.task == "decode" else f"{limit / 1e3:.2f} TFLOP/s"
    return [
        cell.name,
        *(_digits(result[name].middle) for name in ("ours", "plain", "tuned")),
        result["to_plain"].show("{:.2f}".format),
        result["to_tuned"].show("{:.2f}".format),
        f"{result['ours_of_limit'].show('{:.0%}'.format)} of {unit}",
        f"{result['tuned_of_limit'].middle:.0%}",
        str(result["rounds"]),
    ]


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write."""
    arguments = parse_arguments(argv)
    if arguments.write:
        write_section(arguments.write, SECTION, None)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    machine = describe_machine()
    lines = [f"{name}: {value}" for name, value in machine.items()]
    lines.append(f"clock: {arguments.clock}")
    print("\n".join(lines), flush=True)
    results: dict[Cell, dict[str, Any]] = {}
    for dtype in arguments.dtype:
        measured, note = run_dtype(dtype, arguments)
        results |= measured
        lines.append(note)
    table = markdown_table(HEADER, [row_of(cell, result) for cell, result in results.items()])
    slowest = min(min(r["to_plain"].middle, r["to_tuned"].middle) for r in results.values())
    verdict = f"slowest cell: {slowest:.2f} of the faster plain decoder (goal: {CLAIM:.2f} or more)"
    print(f"\n{table}\n\n{verdict}")
    if arguments.write:
        bullets = "\n".join(f"- {line}" for line in (*lines, verdict))
        write_section(arguments.write, SECTION, f"{bullets}\n\n{table}")
    cells = [
        asdict(cell) | {key: value.json() if isinstance(value, Spread) else value for key, value in result.items()}
        for cell, result in results.items()
    ]
    print(json.dumps({"machine": machine, "slowest": round(slowest, 4), "cells": cells}))


if __name__ == "__main__":
    main()
