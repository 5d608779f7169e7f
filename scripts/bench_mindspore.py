"""A decode step on MindSpore: compiled as a static graph, beside the same cells run operator by operator (PyNative).

    ./scripts/test.sh make mindspore           # its environment
    .venvs/mindspore/bin/python scripts/bench_mindspore.py --write docs/benchmarks.md

Both run the same cells on the same weights, states and tokens, in turns: one round times some steps of each. Before
that their logits are compared, and at the end the compilations are counted that the steps caused.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("GLOG_v", "3")  # warnings of MindSpore's C++

import mindspore
import numpy as np
import transformers
from mindspore import Tensor, int32

from ascend_m1.checkpoint_files import published_shapes
from ascend_m1.cli.checkpoint import read_config
from ascend_m1.cli.options import EMBEDDED
from ascend_m1.configuration_baichuan_m1 import BaichuanM1Config
from ascend_m1.mindspore.model import Core, Decode, compiled
from ascend_m1.mindspore.state import state_shapes
from ascend_m1.mindspore.weights import Weights
from bench.hardware import describe_hardware
from bench.report import Spread, add_report_options, markdown_table, publish, ratios, write_section

SECTION = "bench_mindspore"
CAPACITY = 1024
STEPS = {"graph": 20, "PyNative": 2}  # of a round
TOLERANCE = 1e-3  # of logits around 1, float32, sums of up to 3,456 terms in another order


class RandomWeights:
    """Of the published shapes, in place of a checkpoint."""

    def __init__(self, config: BaichuanM1Config) -> None:
        self.shapes, self.random = published_shapes(config), np.random.default_rng(0)

    def read(self, name: str) -> np.ndarray:
        """float32, small enough for activations to stay near 1."""
        if name.endswith("norm.weight"):
            return np.ones(self.shapes[name], np.float32)
        return self.random.standard_normal(self.shapes[name], np.float32) * 0.02


def models() -> dict[str, Core]:
    """The embedded checkpoint, and ten layers with the published kinds of head, a quarter as wide."""
    small = read_config(str(EMBEDDED))
    wide = BaichuanM1Config(
        vocab_size=32768,
        hidden_size=1280,
        intermediate_size=3456,
        num_hidden_layers=10,
        num_attention_heads=5,
        num_key_value_heads=1,
        num_swa_attention_heads=10,
        num_swa_key_value_heads=2,
        sliding_window=512,
        max_position_embeddings=CAPACITY,
    )
    cores = {
        "m1-icd10": Core(small, Weights(EMBEDDED, small), CAPACITY),
        "wide": Core(wide, RandomWeights(wide), CAPACITY),
    }
    return {f"{name}, {parameters(core) / 1e6:,.0f} M": core for name, core in cores.items()}


def parameters(core: Core) -> int:
    """Numbers in the checkpoint."""
    return sum(int(np.prod(shape)) for shape in published_shapes(core.config).values())


def stepper(step: Callable[..., Any], core: Core) -> Callable[[int], np.ndarray]:
    """A function that runs so many steps from the middle of the context, and gives the last one's logits."""
    random = np.random.default_rng(1)
    start = tuple(
        Tensor(random.standard_normal(shape, np.float32)) for shape in state_shapes(core.config, core.capacity)
    )

    def run(count: int) -> np.ndarray:
        state, logits = start, None
        for i in range(count):
            logits, *state = step(Tensor([[i + 3]], int32), Tensor([CAPACITY // 2 + i], int32), *state)
        return logits.asnumpy()

    return run


def measure(core: Core, rounds: int) -> tuple[dict[str, list[float]], float, int]:
    """Seconds a step, the largest difference of the logits, and compilations while measuring."""
    cell = Decode(core)
    runs = {"graph": stepper(compiled(cell), core), "PyNative": stepper(cell, core)}
    error = float(np.abs(runs["graph"](2) - runs["PyNative"](2)).max())
    if not error < TOLERANCE:
        raise SystemExit(f"graph and PyNative differ by {error:.1e}: nothing is measured")
    before = len(mindspore.graph.api.ms_compile_cache)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(rounds):
        for name in sorted(runs, reverse=bool(index % 2)):
            begin = time.perf_counter()
            runs[name](STEPS[name])
            seconds[name].append((time.perf_counter() - begin) / STEPS[name])
    return seconds, error, len(mindspore.graph.api.ms_compile_cache) - before


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_report_options(parser, SECTION, rounds=9)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if arguments.write:
        write_section(arguments.write, SECTION, None)
    mindspore.set_device("CPU")
    threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    versions = f"MindSpore {mindspore.__version__}, NumPy {np.__version__}, transformers {transformers.__version__}"
    machine, rows, samples = describe_hardware(threads, versions), [], {}
    for name, core in models().items():
        seconds, error, recompiled = measure(core, arguments.rounds)
        samples[name] = seconds
        times = [Spread.of(seconds[kind]).times(1e3).show("{:.1f}".format) for kind in ("PyNative", "graph")]
        faster = ratios(seconds["PyNative"], seconds["graph"]).show("{:.1f}".format)
        rows.append([name, *times, faster, str(recompiled), f"{error:.0e}", str(arguments.rounds)])
    header = ["model", "PyNative, ms a token", "graph", "PyNative / graph", "compilations", "difference", "rounds"]
    publish(machine, "\n" + markdown_table(header, rows), arguments.write, SECTION)
    print(json.dumps({"machine": machine, "seconds": samples}))


if __name__ == "__main__":
    main()
