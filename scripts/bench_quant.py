"""Weights of 4 bits in the 14B geometry on a CPU: products alone beside others', and the engine end to end.

    python scripts/bench_quant.py                            # without ggml
    python scripts/bench_quant.py --ggml --write docs/benchmarks.md      # after pip install llama-cpp-python

Random weights in groups of 128. A round measures everything in turn, the machine's read bandwidth and its bfloat16
product of large matrices (GEMM) included, so that a busy moment hits all alike, and ratios are taken within a round. A
bound is the time in which the bytes can be read or the multiplications done at these speeds, whichever is longer.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from ascend_m1 import BaichuanM1Config
from ascend_m1.configuration_baichuan_m1 import LayerSpec
from ascend_m1.inference import InferenceModel
from ascend_m1.parts import LayerParts, ModelParts
from ascend_m1.quantization.read import QuantProjection
from ascend_m1_ops import Prepared, dequantised, pack, packed_linear, packing_pays, prepare, quant_linear
from ascend_m1_serve.engine.core import Core, EngineOptions, make_core
from ascend_m1_serve.protocol import Sampling
from bench.ggml import Ggml
from bench.machine import describe_machine, matmul_probe
from bench.report import Spread, add_report_options, markdown_table, publish, ratios, write_section

SECTION = "bench_quant"
GROUP, BITS = 128, 4
ROWS = (1, 4, 16, 512)
SEQUENCES = (1, 4, 16)
PROMPT, STEPS, CHUNK = 8, 3, 512
PROBE_BYTES = 2**28
TORCH_PRODUCT = torch.ops.aten._weight_int4pack_mm_for_cpu
GOAL_DECODE, GOAL_PREFILL = 0.65, 0.60


@dataclass
class Samples:
    """Seconds of each thing, round by round."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    def time(self, name: str, call: Callable[[], object], times: int = 1) -> None:
        """Note the mean of some calls, after one more that fills the caches."""
        call()
        start = time.perf_counter()
        for _ in range(times):
            call()
        self.note(name, (time.perf_counter() - start) / times)

    def note(self, name: str, seconds: float) -> None:
        """Note one value."""
        self.seconds.setdefault(name, []).append(seconds)

    def of(self, name: str) -> list[float]:
        """In the order of the rounds."""
        return self.seconds[name]


class Probes:
    """What the machine can do: seconds a byte and seconds an operation, measured in every round."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples
        memory = torch.ones(PROBE_BYTES // 4)
        self.read, self.bytes = memory.sum, memory.nbytes
        self.multiply, self.operations = matmul_probe(torch.bfloat16)

    def measure(self) -> None:
        """Once, in this round."""
        self.samples.time("read", self.read, 3)
        self.samples.time("gemm", self.multiply)

    def bounds(self, nbytes: int, operations: int) -> list[float]:
        """The least seconds for so many bytes and operations, by round."""
        reads, products = self.samples.of("read"), self.samples.of("gemm")
        pairs = zip(reads, products, strict=True)
        return [max(nbytes * read / self.bytes, operations * gemm / self.operations) for read, gemm in pairs]

    def describe(self) -> str:
        """Both speeds."""
        read = Spread.of([self.bytes / seconds / 1e9 for seconds in self.samples.of("read")])
        gemm = Spread.of([self.operations / seconds / 1e9 for seconds in self.samples.of("gemm")])
        return f"reads {read.show('{:.1f}'.format)} GB/s, bfloat16 GEMM {gemm.show('{:.0f}'.format)} GFLOP/s"


def random_weight(outputs: int, inputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers int8 [out, in] and scales bfloat16 [out, in / group]."""
    numbers = torch.randint(-8, 8, (outputs, inputs), dtype=torch.int8)
    return numbers, (torch.rand(outputs, inputs // GROUP) * 2e-3 + 1e-3).bfloat16()


def product_rounds(samples: Samples, probes: Probes, shape: tuple[int, int], rounds: int, ggml: Ggml | None) -> int:
    """One shape, all contenders; the bytes of our weight."""
    outputs, inputs = shape
    numbers, scales = random_weight(outputs, inputs)
    ours, plain = prepare(numbers, scales, BITS), dequantised(numbers, scales)
    packed = pack(plain) if packing_pays(plain) else None
    torch_weight = torch.ops.aten._convert_weight_to_int4pack_for_cpu(numbers.int() + 8, 1)
    torch_scales = torch.stack([scales.T, torch.zeros_like(scales.T)], -1).contiguous()
    theirs = None if ggml is None else ggml.weight(plain.float())
    calls: dict[str, Callable[[], object]] = {}
    for rows in ROWS:
        x = torch.randn(rows, inputs).bfloat16()
        calls[f"ours {rows}"] = lambda x=x: quant_linear(x, ours)  # type: ignore[misc]
        calls[f"torch {rows}"] = lambda x=x: TORCH_PRODUCT(x, torch_weight, GROUP, torch_scales)  # type: ignore[misc]
        if packed is not None:
            calls[f"bfloat16 {rows}"] = lambda x=x: packed_linear(x, packed)  # type: ignore[misc]
        if ggml is not None:
            call, read = ggml.product(theirs, x.float(), outputs)
            calls[f"ggml {rows}"] = call
            call()
            assert (read() - x.float() @ plain.float().T).norm() < 0.2 * read().norm(), "ggml computes something else"
    for _ in range(rounds):
        probes.measure()
        for name, call in calls.items():
            samples.time(name, call, 1 if name.endswith(str(CHUNK)) else 3)
    return ours.numbers.nbytes + ours.scales.nbytes


def product_table(samples: Samples, probes: Probes, shape: tuple[int, int], nbytes: int) -> list[list[str]]:
    """Rows of the table of products."""
    lines = []
    for rows in ROWS:
        ours = samples.of(f"ours {rows}")
        bound = probes.bounds(nbytes, 2 * rows * shape[0] * shape[1])
        line = [str(rows), Spread.of(ours).times(1000).show("{:.2f}".format)]
        line.append(ratios(bound, ours).show("{:.0%}".format))
        for other in ("ggml", "torch", "bfloat16"):
            name = f"{other} {rows}"
            line.append(ratios(samples.of(name), ours).show("{:.2f}".format) if name in samples.seconds else "-")
        lines.append(line)
    return lines


class Weights:
    """Random parts of a model of 4 bits: each layer has memory of its own, numbers are drawn once for each shape."""

    def __init__(self) -> None:
        self.drawn: dict[tuple[int, int], Prepared] = {}

    def projection(self, outputs: int, inputs: int) -> QuantProjection:
        if (outputs, inputs) not in self.drawn:
            self.drawn[outputs, inputs] = prepare(*random_weight(outputs, inputs), BITS)
        first = self.drawn[outputs, inputs]
        return QuantProjection(Prepared(first.numbers.clone(), first.scales.clone(), BITS, GROUP, outputs))

    def layer(self, config: BaichuanM1Config, spec: LayerSpec) -> LayerParts:
        hidden, inner = config.hidden_size, config.intermediate_size
        return LayerParts(
            spec=spec,
            input_norm=vector(hidden),
            post_norm=vector(hidden),
            taps=nn.Parameter(torch.rand(2, spec.kv_heads, 2).bfloat16(), requires_grad=False),
            qkv=self.projection(spec.q_size + 2 * spec.kv_size, hidden),
            o=self.projection(hidden, spec.q_size),
            gate_up=self.projection(2 * inner, hidden),
            down=self.projection(hidden, inner),
        )

    def model(self, config: BaichuanM1Config) -> ModelParts:
        table = torch.randn(config.vocab_size, config.hidden_size, dtype=torch.bfloat16).mul_(0.02)
        layers = [self.layer(config, spec) for spec in config.layer_specs]
        self.drawn.clear()
        embed, head = (nn.Parameter(value, requires_grad=False) for value in (table, table.clone()))
        return ModelParts(config, embed=embed, norm=vector(config.hidden_size), head=head, layers=layers)


def vector(size: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(size, dtype=torch.bfloat16), requires_grad=False)


def load(config: BaichuanM1Config) -> tuple[Core, int, int]:
    """The engine, the bytes of weights that a decode step reads, and the numbers that a token is multiplied with."""
    parts = Weights().model(config)
    matrices = [matrix for part in parts.layers for matrix in (part.qkv, part.o, part.gate_up, part.down)]
    nbytes = parts.head.nbytes + sum(p.nbytes for matrix in matrices for p in matrix.parameters())
    inner, hidden = config.intermediate_size, config.hidden_size
    numbers = parts.head.numel() + sum(
        hidden * (2 * part.spec.q_size + 2 * part.spec.kv_size + 3 * inner) for part in parts.layers
    )
    model = InferenceModel(parts, CHUNK + PROMPT)
    del parts
    model.pack_weights()
    options = EngineOptions(CHUNK + PROMPT, max_sequences=max(SEQUENCES), chunk=CHUNK, prefix_caching=False)
    return make_core(model, options), nbytes, numbers


def engine_rounds(samples: Samples, probes: Probes, core: Core, rounds: int) -> None:
    """Decode steps of some sequences together, and a prompt of ``CHUNK`` tokens."""
    for number in range(rounds + 1):  # the first one warms up
        if number:
            probes.measure()
        for sequences in SEQUENCES:
            seconds = decode_seconds(core, sequences)
            if number:
                samples.note(f"decode {sequences}", seconds)
        core.add(random_ids(CHUNK), Sampling(max_tokens=1, ignore_eos=True))
        start = time.perf_counter()
        core.step()
        if number:
            samples.note("prefill", time.perf_counter() - start)
        print(f"round {number} of {rounds}", file=sys.stderr)


def decode_seconds(core: Core, sequences: int) -> float:
    """Of one step, the mean of some."""
    for _ in range(sequences):
        core.add(random_ids(PROMPT), Sampling(max_tokens=STEPS + 2, ignore_eos=True))
    while core.stats().waiting or core.stats().running < sequences:
        core.step()
    core.step()
    start = time.perf_counter()
    for _ in range(STEPS):
        assert len(core.step()) == sequences
    seconds = (time.perf_counter() - start) / STEPS
    while core.scheduler.busy:
        core.step()
    return seconds


def random_ids(count: int) -> list[int]:
    ids: list[int] = torch.randint(3, 1000, (count,)).tolist()
    return ids


def engine_table(samples: Samples, probes: Probes, nbytes: int, numbers: int, head: int) -> list[list[str]]:
    lines = []
    for sequences in SEQUENCES:
        took = samples.of(f"decode {sequences}")
        bound = probes.bounds(nbytes, 2 * sequences * numbers)
        speed = Spread.of([sequences / seconds for seconds in took])
        share = ratios(bound, took).show("{:.0%}".format)
        lines.append([f"decode, {sequences} together", speed.show("{:.2f}".format), share, f"{GOAL_DECODE:.0%}"])
    took = samples.of("prefill")
    gemm = probes.bounds(0, 2 * CHUNK * (numbers - head) + 2 * head)
    share = ratios(gemm, took).show("{:.0%}".format)
    speed = Spread.of([CHUNK / seconds for seconds in took])
    lines.append([f"prompt of {CHUNK} tokens", speed.show("{:.1f}".format), f"{share} of GEMM", f"{GOAL_PREFILL:.0%}"])
    return lines


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_report_options(parser, SECTION, rounds=5)
    parser.add_argument("--layers", type=int, default=40, help="of the model end to end; 0: products only")
    parser.add_argument("--ggml", action="store_true", help="beside llama-cpp-python's products")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


@torch.no_grad()
def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    if arguments.write:
        write_section(arguments.write, SECTION, None)
    machine, findings = describe_machine(), []
    config = BaichuanM1Config(num_hidden_layers=arguments.layers or 1)
    shape = (2 * config.intermediate_size, config.hidden_size)
    end_to_end = Samples()
    if arguments.layers:
        core, nbytes, numbers = load(config)
        probes = Probes(end_to_end)
        engine_rounds(end_to_end, probes, core, arguments.rounds)
        machine["end to end"] = probes.describe()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        machine["memory used"] = f"{peak:.1f} GiB at most, weights {nbytes / 2**30:.1f} GiB (goal: 12)"
        head = config.vocab_size * config.hidden_size
        table = engine_table(end_to_end, probes, nbytes, numbers, head)
        findings.append(markdown_table(["engine", "tokens/s", "of the bound", "goal"], table))
        del core
    products = Samples()
    probes = Probes(products)
    nbytes = product_rounds(products, probes, shape, arguments.rounds, Ggml() if arguments.ggml else None)
    machine["products"] = f"a weight of {shape[0]} x {shape[1]}; {probes.describe()}"
    header = ["rows", "ms", "of the bound", "speed of ggml's Q4_0", "of torch's int4", "of bfloat16, packed"]
    findings.append(markdown_table(header, product_table(products, probes, shape, nbytes)))
    publish(machine, "\n" + "\n\n".join(findings), arguments.write, SECTION)
    print(json.dumps({"machine": machine, "engine": end_to_end.seconds, "products": products.seconds}))


if __name__ == "__main__":
    main()
