"""Decode as one graph: every golden case through each route, the launches it takes and the bytes it moves."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from functools import lru_cache

import pytest
import torch
import torch_npu
from torch import Tensor

import ascend_m1_hostnpu as host
from ascend_m1 import BaichuanM1Config, BaichuanM1ForCausalLM
from ascend_m1.decode import Decoder
from ascend_m1.graphs import Lengths, Logits

from ..model.paged_run import Run, Server
from .golden import (
    CASES,
    LOW_PRECISION,
    TOLERANCE,
    assert_as_near,
    assert_same_choices,
    exact_logits,
    load,
    load_prompts,
    max_error,
)

GRAPHS = ["npugraph", "npugraph_ex", "cann"]
# In 16 bits the prompts up to this length, and fewer steps: Triton's interpreter takes milliseconds a token and layer.
SHORT, FEW = 50, 8


@dataclass
class Filled:
    """A server that has read its prompts, and what its cache held then: no graph takes part in that."""

    server: Server
    lengths: list[int]
    run: Run
    cache: list[tuple[Tensor, Tensor]]

    def restore(self) -> None:
        for tensor, then in self.cache:
            tensor.copy_(then)


@lru_cache(maxsize=2)
def filled(case: str, dtype: torch.dtype, device: str, chunk: int, longest: int) -> Filled:
    prompts = [ids.tolist() for ids, _, _ in load_prompts(case) if len(ids) <= longest]
    server = Server(load(case, dtype, device), len(prompts))
    run = server.prefill(prompts, chunk)
    cache = [(tensor, tensor.clone()) for layer in server.cache.layers for tensor in (layer.k, layer.v, layer.state)]
    return Filled(server, [len(prompt) for prompt in prompts], run, cache)


def generate(
    case: str,
    dtype: torch.dtype,
    graph: str,
    device: str = "npu",
    chunk: int = 512,
    longest: int = 512,
    steps: int = 24,
) -> Run:
    """Greedy tokens, decoded through a graph after a prefill that is the same for all."""
    torch._dynamo.reset()
    start = filled(case, dtype, device, chunk, longest)
    start.restore()
    tokens, lengths = [list(first) for first in start.run.tokens], list(start.lengths)
    with start.server.through(graph):
        start.server.decode(tokens, lengths, steps)
    return Run(start.run.logits, tokens)


@pytest.mark.parametrize("graph", ["eager", *GRAPHS])
@pytest.mark.parametrize("case", CASES)
def test_golden_through_every_route(case: str, graph: str) -> None:
    run = generate(case, torch.float32, graph)
    for (_, logits, greedy), last, out in zip(load_prompts(case), run.logits, run.tokens, strict=True):
        assert max_error(last, logits[-1]) <= TOLERANCE
        assert out == greedy.tolist()


@pytest.mark.parametrize("graph", GRAPHS)
def test_sequences_that_come_and_go(graph: str) -> None:
    """Steps of 1 to 5 sequences, so every bucket's graph over the same cache, in turns."""
    torch._dynamo.reset()
    prompts = load_prompts("published-ratio")
    server = Server(load("published-ratio", torch.float32, "npu"), len(prompts), graph)
    run = server.run([ids.tolist() for ids, _, _ in prompts], 8, apart=1)
    assert run.tokens == [greedy.tolist()[:8] for _, _, greedy in prompts]
    assert [(decoder.batch, decoder.ready) for decoder in server.decoder.decoders] == [
        (1, True),
        (2, True),
        (4, True),
        (6, True),
    ]


def test_a_forgotten_graph_is_not_destroyed_inside_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch_npu would lose the graph in the making."""
    first, second = (Server(load(case, torch.float32, "npu"), 1, "npugraph") for case in ("window-only", "global-only"))
    plain = Decoder.forward

    def forward(decoder: Decoder, *lengths: Lengths) -> Logits:
        if torch.npu.is_current_stream_capturing():
            gc.collect()  # as Python may at any moment
        return plain(decoder, *lengths)

    gc.disable()
    try:
        first.run([[1, 2, 3]], 2)
        forgotten: list[object] = [first]
        forgotten.append(forgotten)
        del first, forgotten
        monkeypatch.setattr(Decoder, "forward", forward)
        ids, _, greedy = load_prompts("global-only")[0]
        assert second.run([ids.tolist()], 24).tokens == [greedy.tolist()]
    finally:
        gc.enable()


@pytest.mark.parametrize(("dtype", "captured"), list(zip(LOW_PRECISION, ["npugraph", "npugraph_ex"], strict=True)))
@pytest.mark.parametrize("case", CASES)
def test_low_precision(case: str, dtype: torch.dtype, captured: str) -> None:
    """A captured graph gives the eager path's tokens; those and the CANN graph's are the CPU's up to rounding.

    A CANN graph is made of other operators than the fused one, so two equal logits may fall the other way there.
    """
    how = {"chunk": 9, "longest": SHORT, "steps": FEW}
    eager = generate(case, dtype, "eager", **how)
    assert generate(case, dtype, captured, **how).tokens == eager.tokens
    cann = generate(case, dtype, "cann", **how)
    cpu = generate(case, dtype, "eager", "cpu", **how)
    prompts = [prompt for prompt in load_prompts(case) if len(prompt[0]) <= SHORT]
    assert_as_near(eager.logits, cpu.logits, [logits[-1] for _, logits, _ in prompts])
    for (ids, _, _), got, graph, expected in zip(prompts, eager.tokens, cann.tokens, cpu.tokens, strict=True):
        text = torch.cat([ids, torch.tensor(expected)])
        with torch.no_grad():
            rounded = load(case, dtype, "cpu")(text[None]).logits[0]
        along = [rows[len(ids) - 1 : -1] for rows in (exact_logits(case, text), rounded)]
        assert_same_choices(got, expected, *along)
        assert_same_choices(graph, expected, *along)


def published(layers: int, hidden: int = 512) -> BaichuanM1ForCausalLM:
    """The published kinds of layer (head_dim 256 and 128, groups of 10 and 5), narrower; windows alternate."""
    config = BaichuanM1Config(
        vocab_size=1024,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 256,
        num_key_value_heads=hidden // 512,
        num_swa_attention_heads=hidden // 128,
        num_swa_key_value_heads=hidden // 256,
        sliding_window=64,
        sliding_window_layers=list(range(1, layers, 2)),
        max_position_embeddings=512,
    )
    torch.manual_seed(0)
    return BaichuanM1ForCausalLM(config).to(torch.bfloat16).to("npu").eval()


def decode_log(model: BaichuanM1ForCausalLM, graph: str, held: int) -> tuple[Server, host.Recording]:
    """The log of one captured step of two sequences."""
    torch._dynamo.reset()
    server = Server(model, 2, graph)
    run = server.run([list(range(held)), list(range(held))], 3)
    lengths = [held + 2, held + 2]
    with host.recording() as log:
        server.step(run.tokens, lengths)
    return server, log


@pytest.mark.parametrize("graph", ["eager", "npugraph", "npugraph_ex"])
def test_nine_launches_a_layer_and_six_besides(graph: str) -> None:
    """Global and window layer: residual norm, qkv, conv + RoPE + cache, attention, o, norm, gate_up, SwiGLU, down."""
    counts = [len(decode_log(published(layers), graph, 100)[1].kernels) for layers in (1, 2, 3)]
    assert counts[1] - counts[0] == 9, "window layer"
    assert counts[2] - counts[1] == 9, "global layer"
    assert counts[0] - 9 <= 6, "embedding, final norm, head, scale, its rounding, greedy choice"


def test_everything_but_the_input_copy_is_replayed() -> None:
    _, log = decode_log(published(2), "npugraph", 100)
    assert [launch.name for launch in log.launches if not launch.captured] == ["memcpy"]


def test_bytes_moved_are_the_least_possible() -> None:
    """Weights once and live keys and values once; 1.05 leaves room for activations, tables and the head's scale."""
    model = published(2, hidden=1024)
    held = 200
    _, log = decode_log(model, "npugraph", held)
    weights = sum(p.nbytes for name, p in model.named_parameters() if "embed" not in name)
    least = weights
    for spec in model.config.layer_specs:
        keys = held + 3 if spec.window is None else min(held + 3, spec.window)
        least += 2 * 2 * keys * spec.kv_size * 2  # two sequences, k and v, 2 bytes
    assert log.bytes <= 1.05 * least, f"{log.bytes / least:.3f}"
    assert log.bytes >= least, "a log that misses something"


def test_no_copy_of_a_cache_in_the_cann_graph() -> None:
    from ascend_m1_hostnpu.graph import graphs

    before = len(graphs)
    decode_log(published(2), "cann", 100)
    assert len(graphs) == before + 1, "one graph for every step"
    types = graphs[-1].types
    assert not {"TensorMove", "Identity", "Assign", "ViewCopy", "Transpose"} & set(types)
    assert types["ScatterPaKvCache"] == types["FusedInferAttentionScore"] == 2


def test_a_graph_is_captured_once() -> None:
    from torch._dynamo.utils import counters

    counters.clear()
    generate("hybrid", torch.float16, "npugraph_ex", longest=9, steps=8)
    assert counters["stats"]["unique_graphs"] == 1
    captured = {name: count for name, count in counters["npugraph_ex"].items() if name.startswith("captured_graph")}
    assert list(captured.values()) == [1]
    assert not any(name.startswith("recapture") for name in counters["npugraph_ex"])


def test_a_replay_that_is_not_told_the_lengths_fails() -> None:
    """On the device it would wait for ever."""
    graph = torch.npu.NPUGraph()
    q, cache = torch.randn(1, 4, 128).half().npu(), torch.randn(1, 16, 128).half().npu()
    table = torch.zeros(1, 1, dtype=torch.int32).npu()
    with torch.npu.graph(graph, auto_dispatch_capture=True):
        torch_npu.npu_fused_infer_attention_score_v2(
            q,
            cache,
            cache,
            actual_seq_qlen=[1],
            actual_seq_kvlen=[1],
            block_table=table,
            num_query_heads=4,
            num_key_value_heads=1,
            input_layout="TND",
            block_size=16,
        )
    graph.replay()
    with pytest.raises(RuntimeError, match="nothing writes"):
        torch.npu.synchronize()
