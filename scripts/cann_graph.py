"""The CANN graph of a decode step: its operators by type, for one layer of either kind and for the rest.

    python scripts/cann_graph.py
    python scripts/cann_graph.py --batch 8 --write docs/npu.md      # puts the table into the document

Runs on the host NPU: TorchAir lowers the step as on a device; the engine that takes the graph is a stand-in, so what
the real one fuses is not seen. The layers are of the published kinds (head_dim 256 with 10 query heads to a key/value
head, 128 with 5), narrow. What a layer has is the difference between the graphs with and without it, for the second of
its kind; the third global layer must add the same again. The script fails if the graph copies a cache or transposes a
weight.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import ascend_m1_hostnpu  # noqa: F401  # isort: skip  before torch_npu, which transformers imports

import torch
from transformers.utils import logging

from ascend_m1 import BaichuanM1Config, BaichuanM1ForCausalLM
from ascend_m1.decode import Decoder
from ascend_m1.inference import InferenceModel
from ascend_m1.paged import PagedCache
from ascend_m1.steps import Chunk
from bench.report import markdown_table, write_section

SECTION = "cann_graph"
COPIES = {"TensorMove", "Identity", "Assign", "ViewCopy", "Transpose"}
MAX_LENGTH, VOCABULARY = 512, 1024
# Published: 20 heads of 256 with 2 key/value heads, 40 of 128 with 8. Here: one key/value head each, the groups kept.
HIDDEN, HEADS, KV_HEADS, WINDOW_HEADS, WINDOW_KV_HEADS = 2560, 10, 1, 20, 4


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=2, help="sequences in a step")
    parser.add_argument("--write", type=Path, metavar="FILE", help=f"document with a place <!-- {SECTION} --> to fill")
    arguments = parser.parse_args(argv)
    if arguments.batch < 1:
        parser.error("--batch: give a positive number")
    return arguments


def operators(layers: int, batch: int) -> Counter[str]:
    """Type -> how often, in the graph of a decode step; layers 1, 3, … are window layers."""
    from ascend_m1_hostnpu.graph import graphs

    config = BaichuanM1Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=512,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        num_swa_attention_heads=WINDOW_HEADS,
        num_swa_key_value_heads=WINDOW_KV_HEADS,
        sliding_window=128,
        sliding_window_layers=list(range(1, layers, 2)),
        max_position_embeddings=MAX_LENGTH,
    )
    torch._dynamo.reset()
    before = len(graphs)
    model = InferenceModel(BaichuanM1ForCausalLM(config).to("npu", torch.bfloat16).eval(), MAX_LENGTH)
    decoder = Decoder(model, PagedCache(config, batch, batch, torch.bfloat16, "npu"), batch, MAX_LENGTH, "cann")
    for held in range(3):
        decoder.step([Chunk(row, [row], held, [row]) for row in range(batch)])
    if len(graphs) != before + 1:
        raise SystemExit(f"{layers} layers: {len(graphs) - before} graphs for three steps instead of one")
    types: Counter[str] = graphs[-1].types
    copies = {name: types[name] for name in COPIES & set(types)}
    if copies:
        raise SystemExit(f"{layers} layers: the graph copies: {copies}")
    return types


def difference(larger: Counter[str], smaller: Counter[str]) -> Counter[str]:
    """What one graph has more; raises SystemExit if the smaller one has more of anything."""
    result = larger.copy()
    result.subtract(smaller)
    if any(count < 0 for count in result.values()):
        raise SystemExit(f"a graph of fewer layers has more operators: {result}")
    return +result


def table(batch: int) -> tuple[str, dict[str, dict[str, int]]]:
    """Markdown, and the counts by column.

    A graph shares what layers of a kind have in common (rows of a rotary table), so the first layer of a kind adds
    more than the next: layers 3 and 4 are what a layer costs, the rest is in the last column.
    """
    graph = {layers: operators(layers, batch) for layers in (2, 3, 4, 5)}
    global_layer, window_layer = difference(graph[3], graph[2]), difference(graph[4], graph[3])
    if difference(graph[5], graph[4]) != global_layer:
        raise SystemExit("a global layer more does not add what the one before added")
    rest = difference(difference(graph[2], global_layer), window_layer)
    columns = {"global layer": global_layer, "window layer": window_layer, "once a step": rest}
    names = sorted(set().union(*columns.values()), key=lambda name: (-global_layer[name], -rest[name], name))
    rows = [[f"`{name}`", *(str(counts[name]) for counts in columns.values())] for name in names]
    rows.append(["all", *(str(counts.total()) for counts in columns.values())])
    text = markdown_table(["operator", *columns], rows)
    return text, {name: dict(counts) for name, counts in columns.items()}


def main(argv: list[str] | None = None) -> None:
    """Compile, count, print, write."""
    arguments = parse_arguments(argv)
    if arguments.write:
        write_section(arguments.write, SECTION, None)
    logging.set_verbosity_error()
    text, counts = table(arguments.batch)
    copies = ", ".join(f"`{name}`" for name in sorted(COPIES))
    text += f"\n\nLowered by TorchAir of torch_npu {version('torch-npu')}; among them none of {copies}."
    print(text)
    if arguments.write:
        write_section(arguments.write, SECTION, text)
    print(json.dumps({"batch": arguments.batch, **counts}))


if __name__ == "__main__":
    main()
