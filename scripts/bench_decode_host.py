"""Host time of a decode step above CANN: eager, captured, and beside transformers' Llama of the same depth.

    python scripts/bench_decode_host.py                     # 40 layers, 8 sequences
    python scripts/bench_decode_host.py --layers 4 --rounds 5
    python scripts/bench_decode_host.py --write docs/benchmarks.md

Runs on the host NPU in null mode: every call into CANN returns at once, so what is timed is torch, torch_npu, this
package's Python and, in eager steps, the stand-in of Triton's launcher. Nothing is computed, which is why the widths
can be small; depth, kinds of layer and operators are those of the published model. All contenders run in one process,
in turns of some steps as a server makes them, and ratios are taken within a round. Launches are counted from the log of
a real step before.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ascend_m1_hostnpu as host  # isort: skip  before torch_npu, which transformers imports

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

from ascend_m1 import BaichuanM1Config, BaichuanM1ForCausalLM
from ascend_m1.decode import Decoder
from ascend_m1.graphs import Logits
from ascend_m1.inference import InferenceModel
from ascend_m1.paged import BLOCK_SIZE, PagedCache
from ascend_m1.steps import Chunk
from bench.machine import describe_machine
from bench.report import Spread, markdown_table, publish, ratios, write_section

SECTION = "bench_decode_host"
GOAL = 0.1  # captured / eager
CONTEXT, MAX_LENGTH, VOCABULARY, HIDDEN = 256, 1024, 1024, 512
Context = Callable[[], Any]


@dataclass
class Contender:
    """What is timed: a step, what surrounds it, the launches it gives the device, seconds a step for each round."""

    name: str
    step: Callable[[], object]
    launches: int
    around: Context = nullcontext
    seconds: list[float] = field(default_factory=list)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=40)
    parser.add_argument("--batch", type=int, default=8, help="sequences in a step")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=20, help="of each contender in a round, one after the other")
    parser.add_argument("--write", type=Path, metavar="FILE", help=f"document with a place <!-- {SECTION} --> to fill")
    arguments = parser.parse_args(argv)
    if min(arguments.layers, arguments.batch, arguments.rounds, arguments.steps) < 1:
        parser.error("--layers, --batch, --rounds, --steps: give positive numbers")
    return arguments


def published(layers: int) -> InferenceModel:
    """The published kinds of layer (head_dim 256 and 128), narrow, random."""
    config = BaichuanM1Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=layers,
        num_attention_heads=HIDDEN // 256,
        num_key_value_heads=HIDDEN // 512,
        num_swa_attention_heads=HIDDEN // 128,
        num_swa_key_value_heads=HIDDEN // 256,
        max_position_embeddings=MAX_LENGTH,
    )
    return InferenceModel(BaichuanM1ForCausalLM(config).to("npu", torch.bfloat16).eval(), MAX_LENGTH)


def launches(step: Callable[[], object]) -> int:
    """Kernels of one step that really runs."""
    with host.recording() as log:
        step()
        torch.npu.synchronize()  # type: ignore[attr-defined]
    return len(log.kernels)


def our_contenders(layers: int, batch: int, folder: str) -> list[Contender]:
    """Each route over the same weights and cache, checked to give the eager logits."""
    model = published(layers)
    blocks = MAX_LENGTH // BLOCK_SIZE
    cache = PagedCache(model.config, batch, batch * blocks, torch.bfloat16, "npu")

    def step(decoder: Decoder, held: int = CONTEXT) -> Logits:
        tables = [range(row * blocks, (row + 1) * blocks) for row in range(batch)]
        return decoder.step([Chunk(row, tables[row], held, [row + 1]) for row in range(batch)])

    def decoder(graph: str, cache_dir: str | None = None) -> Decoder:
        torch._dynamo.reset()
        made = Decoder(model, cache, batch, MAX_LENGTH, graph, cache_dir)
        logits = step(made, held=0).logits.cpu()  # the first token: depends on nothing that an earlier step left
        if wanted and not torch.equal(logits, wanted[0]):
            raise SystemExit(f"{graph}: its logits are not those of the eager step: nothing is measured; run the tests")
        wanted.append(logits)
        return made

    wanted: list[torch.Tensor] = []
    eager, npugraph, npugraph_ex = (decoder(graph) for graph in ("eager", "npugraph", "npugraph_ex"))
    decoder("npugraph_ex", folder)  # fills the folder
    kept = decoder("npugraph_ex", folder)
    contenders = [
        ("eager", eager, nullcontext),
        ("eager, launcher of Triton's stand-in left out", eager, no_triton),
        ("npugraph", npugraph, nullcontext),
        ("npugraph, without the update of lengths", npugraph, no_update),
        ("npugraph_ex", npugraph_ex, nullcontext),
        ("npugraph_ex from cache_dir", kept, nullcontext),
    ]
    counts = {id(made): launches(partial(step, made)) for made in (eager, npugraph, npugraph_ex, kept)}
    return [Contender(name, partial(step, made), counts[id(made)], around) for name, made, around in contenders]


@contextmanager
def no_update() -> Iterator[None]:
    """Replays that are not told the lengths; for null mode."""
    update = torch.npu.NPUGraph.update  # type: ignore[attr-defined]
    torch.npu.NPUGraph.update = lambda *arguments, **named: None  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.npu.NPUGraph.update = update  # type: ignore[attr-defined]


@contextmanager
def no_triton() -> Iterator[None]:
    """Launches of Triton kernels that cost a call and nothing else; for null mode."""
    from triton.runtime.interpreter import InterpretedFunction

    run = InterpretedFunction.run
    InterpretedFunction.run = lambda *arguments, **named: None
    try:
        yield
    finally:
        InterpretedFunction.run = run


def llama_contenders(layers: int, batch: int) -> list[Contender]:
    """transformers' Llama, eager, as many layers, widths as ours, heads as in our window layers."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=layers,
        num_attention_heads=HIDDEN // 128,
        num_key_value_heads=HIDDEN // 256,
        head_dim=128,
        max_position_embeddings=MAX_LENGTH,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config).to("npu", torch.bfloat16).eval()
    prompt = torch.zeros(batch, CONTEXT, dtype=torch.int64, device="npu")
    caches = {"DynamicCache": DynamicCache(config=config), "StaticCache": StaticCache(config, max_cache_len=MAX_LENGTH)}
    contenders = []
    for name, cache in caches.items():
        model(prompt, past_key_values=cache, use_cache=True, logits_to_keep=1)
        step = partial(model, prompt[:, :1], past_key_values=cache, use_cache=True)
        contenders.append(Contender(f"Llama, {name}", step, launches(step)))
    return contenders


def measure(contenders: list[Contender], rounds: int, steps: int) -> None:
    """Seconds a step, filled in; the first round warms up and is dropped."""
    gc.disable()
    with host.null_mode():
        for index in range(rounds + 1):
            shift = index % len(contenders)
            for contender in contenders[shift:] + contenders[:shift]:
                with contender.around():
                    contender.step()  # brings its code and data back into the processor's caches
                    start = time.perf_counter()
                    for _ in range(steps):
                        contender.step()
                    contender.seconds.append((time.perf_counter() - start) / steps)
            gc.collect()
    for contender in contenders:
        del contender.seconds[0]


def report(contenders: list[Contender]) -> tuple[str, dict[str, Any]]:
    """For people and for programs."""
    eager, shorter, npugraph = contenders[:3]
    llama = contenders[-2]
    rows, results = [], {}
    for each in contenders:
        step, ratio = Spread.of(each.seconds).times(1e3), ratios(each.seconds, eager.seconds)
        launch = step.times(1e3 / each.launches)
        rows.append([each.name, step.show("{:.3g}".format), f"{each.launches:,}", launch.show("{:.3g}".format),
                     ratio.show("{:.3f}".format)])  # fmt: skip
        results[each.name] = {"ms": step.json(), "launches": each.launches, "ratio": ratio.json()}
    header = ["step", "host ms", "launches", "host µs / launch", "ratio to eager"]
    captured, low = ratios(npugraph.seconds, eager.seconds), ratios(npugraph.seconds, shorter.seconds)
    per_launch = Spread.of(
        [a / b for a, b in zip(eager.seconds, llama.seconds, strict=True)]
    ).times(llama.launches / eager.launches)  # fmt: skip
    whole = ratios(eager.seconds, llama.seconds)
    form = "{:.3f}".format
    lines = [
        f"- npugraph / eager: {captured.show(form)} (goal: {GOAL} or less); {low.show(form)} of the eager step whose "
        "Triton launches cost nothing",
        f"- eager / {llama.name}: {whole.show(form)} a step, {per_launch.show(form)} a launch (goal: 1 or less)",
    ]
    return "\n".join([*lines, "", markdown_table(header, rows)]), results


def main(argv: list[str] | None = None) -> None:
    """Check, count, measure, print, write."""
    arguments = parse_arguments(argv)
    if arguments.write:
        write_section(arguments.write, SECTION, None)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    machine = describe_machine()
    machine["versions"] += f", torch_npu {version('torch-npu')}"
    machine["geometry"] = f"{arguments.layers} layers, {arguments.batch} sequences, hidden size {HIDDEN}, bfloat16"
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        contenders = our_contenders(arguments.layers, arguments.batch, folder)
        contenders += llama_contenders(arguments.layers, arguments.batch)
        measure(contenders, arguments.rounds, arguments.steps)
    table, results = report(contenders)
    publish(machine, table, arguments.write, SECTION)
    print(json.dumps({"layers": arguments.layers, "batch": arguments.batch, "steps": results}))


if __name__ == "__main__":
    main()
