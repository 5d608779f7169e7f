"""Decode in a CANN graph: the fused operator's conversion, and two layers against their eager run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch_npu
import torchair
from torch import Tensor
from torch.nn.functional import linear

import ascend_m1_hostnpu  # noqa: F401  before torch_npu
import ascend_m1_hostnpu.graph as engine
from ascend_m1_ops import cann_graph
from ascend_m1_ops.conv_rope_cache import conv_rope_cache_reference  # noqa: F401  defines the operator
from ascend_m1_ops.rope import rope_tables

BLOCKS, BLOCK = 8, 16
COPIES = ("TensorMove", "Identity", "Transpose", "Assign", "ViewCopy")


def compiled(function: Any) -> Any:
    torch._dynamo.reset()
    return torch.compile(function, backend=cann_graph.backend(), fullgraph=True, dynamic=False)


def fused_inputs(tokens: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tokens + heads)
    cos, sin = rope_tables(torch.arange(64), dim, 10000.0)
    order = torch.randperm(tokens, generator=generator)
    cache = [torch.randn(BLOCKS, BLOCK, kv_heads, dim, generator=generator).to(dtype) for _ in range(2)]
    continues = (torch.arange(tokens) % 2).int()
    state = torch.randn(tokens + 1, 2, kv_heads, dim, generator=generator).to(dtype)
    state[order[continues == 0]] = float("nan")  # what a row held before a new sequence does not matter
    return [
        torch.randn(tokens, (heads + 2 * kv_heads) * dim, generator=generator).to(dtype),
        torch.randn(2, kv_heads, 2, generator=generator).to(dtype),
        cos,
        sin,
        torch.randint(0, 64, (tokens,), generator=generator).int(),
        torch.randperm(BLOCKS * BLOCK, generator=generator)[:tokens].int(),
        torch.arange(tokens).int(),
        torch.arange(tokens + 1).int(),
        order.int(),
        continues,
        *cache,
        state,
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "heads", "kv_heads", "dim"), [(1, 4, 2, 256), (2, 5, 1, 128), (7, 8, 4, 32)])
def test_the_converted_operator_equals_the_operator(
    tokens: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype
) -> None:
    cpu = fused_inputs(tokens, heads, kv_heads, dim, dtype)
    npu = [tensor.npu() for tensor in cpu]
    pointers = [tensor.data_ptr() for tensor in npu[-3:]]
    with torch.inference_mode():
        expected = torch.ops.ascend_m1.conv_rope_cache(*cpu)
        got = compiled(lambda *inputs: torch.ops.ascend_m1.conv_rope_cache(*inputs))(*npu)
    # The same roundings in the same places; only a fused multiply-add may move a last bit.
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(got.cpu(), expected, rtol=rounding, atol=rounding)
    for ours, theirs in zip(npu[-3:], cpu[-3:], strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=rounding, atol=rounding, equal_nan=True)
    assert [tensor.data_ptr() for tensor in npu[-3:]] == pointers
    assert not any(engine.graphs[-1].types[name] for name in COPIES)


def test_prefill_is_refused() -> None:
    inputs = [tensor.npu() for tensor in fused_inputs(4, 4, 2, 32, torch.float16)]
    inputs[7], inputs[8], inputs[9] = inputs[7][:3], inputs[8][:2], inputs[9][:2]
    with pytest.raises(Exception, match="only decode"):
        compiled(lambda *tensors: torch.ops.ascend_m1.conv_rope_cache(*tensors))(*inputs)


def test_a_cache_that_is_a_view_is_refused() -> None:
    inputs = [tensor.npu() for tensor in fused_inputs(2, 4, 2, 32, torch.float16)]
    both = torch.stack((inputs[10], inputs[11]))
    with pytest.raises(Exception, match="whole tensors"):
        compiled(lambda *t: torch.ops.ascend_m1.conv_rope_cache(*t[:10], t[10][0], t[10][1], t[11]))(
            *inputs[:10], both, inputs[12]
        )


def test_without_the_pass_conversion_is_refused() -> None:
    cann_graph.register_converters()
    torch._dynamo.reset()
    inputs = [tensor.npu() for tensor in fused_inputs(2, 4, 2, 32, torch.float16)]
    plain = torchair.get_npu_backend(compiler_config=torchair.CompilerConfig())
    with pytest.raises(Exception, match="would copy the caches"):
        torch.compile(lambda *t: torch.ops.ascend_m1.conv_rope_cache(*t), backend=plain, fullgraph=True)(*inputs)


HIDDEN, INTER, VOCAB = 64, 96, 50
LAYERS = ({"heads": 4, "kv_heads": 2, "dim": 64, "window": None}, {"heads": 8, "kv_heads": 4, "dim": 32, "window": 20})


class Decoder(torch.nn.Module):
    """One decode step of a global and a window layer: tokens [S] -> next tokens [S]."""

    def __init__(self, dtype: torch.dtype, sequences: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)

        def weight(*shape: int, scale: float = 0.08) -> torch.nn.Parameter:
            return torch.nn.Parameter((torch.randn(shape, generator=generator) * scale).to(dtype), requires_grad=False)

        self.embed, self.head = weight(VOCAB, HIDDEN, scale=1.0), weight(VOCAB, HIDDEN, scale=1.0)
        self.norms = torch.nn.ParameterList([weight(HIDDEN, scale=0.0) for _ in range(2 * len(LAYERS) + 1)])
        for norm in self.norms:
            norm.data += 1
        self.layers = torch.nn.ModuleList()
        for kind in LAYERS:
            heads, kv_heads, dim = kind["heads"], kind["kv_heads"], kind["dim"]
            layer = torch.nn.Module()
            layer.qkv, layer.o = weight((heads + 2 * kv_heads) * dim, HIDDEN), weight(HIDDEN, heads * dim)
            layer.up, layer.down = weight(2 * INTER, HIDDEN), weight(HIDDEN, INTER)
            layer.taps = weight(2, kv_heads, 2, scale=0.7)
            cos, sin = rope_tables(torch.arange(128), dim, 10000.0)
            layer.register_buffer("cos", cos)
            layer.register_buffer("sin", sin)
            self.layers.append(layer)
        self.register_buffer("rows", torch.arange(sequences + 1, dtype=torch.int32))
        self.register_buffer("ends", torch.arange(1, sequences + 1))
        self.register_buffer("mask", torch.ones(2048, 2048, dtype=torch.bool).triu(1))

    def forward(self, tokens: Tensor, places: dict[str, Tensor], lengths: Tensor, caches: Any) -> Tensor:
        count = tokens.shape[0]
        x = self.embed[tokens]
        h = torch_npu.npu_rms_norm(x, self.norms[0], 1e-6)[0]
        for index, (kind, layer, cache) in enumerate(zip(LAYERS, self.layers, caches, strict=True)):
            q = torch.ops.ascend_m1.conv_rope_cache(
                linear(h, layer.qkv), layer.taps, layer.cos, layer.sin, places["positions"], places["slots"],
                self.rows[:count], self.rows, self.rows[:count], places["continues"], *cache,
            )  # fmt: skip
            o = self.attend(q, kind, cache, places["table"], lengths)
            h, _, x = torch_npu.npu_add_rms_norm(x, linear(o.flatten(1), layer.o), self.norms[2 * index + 1], 1e-6)
            m = linear(torch_npu.npu_swiglu(linear(h, layer.up)), layer.down)
            h, _, x = torch_npu.npu_add_rms_norm(x, m, self.norms[2 * index + 2], 1e-6)
        return linear(h, self.head).argmax(-1)

    def attend(self, q: Tensor, kind: Any, cache: Any, table: Tensor, lengths: Tensor) -> Tensor:
        settings: dict[str, Any] = {"sparse_mode": 0}
        if kind["window"]:
            settings = {"sparse_mode": 4, "atten_mask": self.mask, "pre_tokens": kind["window"] - 1, "next_tokens": 0}
        settings |= {"block_table": table, "num_query_heads": kind["heads"], "num_key_value_heads": kind["kv_heads"]}
        settings |= {"softmax_scale": kind["dim"] ** -0.5, "input_layout": "TND", "block_size": BLOCK}
        k, v = (side.flatten(2) for side in cache[:2])
        if torch.compiler.is_compiling():
            operator, ends = torchair.ops.npu_fused_infer_attention_score_v2, self.ends
        else:
            operator, ends, lengths = torch_npu.npu_fused_infer_attention_score_v2, self.ends.tolist(), lengths.tolist()
        return operator(q, k, v, actual_seq_qlen=ends, actual_seq_kvlen=lengths, **settings)[0]


def new_caches(dtype: torch.dtype, sequences: int) -> list[list[Tensor]]:
    caches = []
    for kind in LAYERS:
        shape = kind["kv_heads"], kind["dim"]
        caches.append([torch.zeros(BLOCKS, BLOCK, *shape, dtype=dtype).npu() for _ in range(2)])
        caches[-1].append(torch.zeros(sequences, 2, *shape, dtype=dtype).npu())
    return caches


def generate(step: Any, sequences: int, steps: int, caches: Any) -> list[list[int]]:
    tokens = torch.arange(3, 3 + sequences).npu()
    pages = BLOCKS // sequences
    table = torch.arange(sequences * pages, dtype=torch.int32).view(sequences, pages)
    produced = []
    for position in range(steps):
        places = {
            "positions": torch.full((sequences,), position, dtype=torch.int32),
            "slots": (table[:, position // BLOCK] * BLOCK + position % BLOCK).int(),
            "continues": torch.full((sequences,), int(position > 0), dtype=torch.int32),
            "table": table,
        }
        places = {name: tensor.npu() for name, tensor in places.items()}
        tokens = step(tokens, places, torch.full((sequences,), position + 1).npu(), caches)
        produced.append(tokens.tolist())
    return produced


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sequences", [1, 2])
def test_decode_in_a_cann_graph_equals_eager(sequences: int, dtype: torch.dtype) -> None:
    with torch.inference_mode():
        model = Decoder(dtype, sequences).npu()
        expected_caches, caches = new_caches(dtype, sequences), new_caches(dtype, sequences)
        expected = generate(model, sequences, 30, expected_caches)
        before = len(engine.graphs)
        got = generate(compiled(model.forward), sequences, 30, caches)
    assert got == expected
    assert len(engine.graphs) == before + 1
    assert engine.graphs[-1].runs == 30
    types = engine.graphs[-1].types
    assert not any(types[name] for name in COPIES)
    assert types["ScatterPaKvCache"] == types["FusedInferAttentionScore"] == len(LAYERS)
    assert types["MatMul"] == 4 * len(LAYERS) + 1
    for ours, theirs in zip(caches, expected_caches, strict=True):
        for mine, other in zip(ours, theirs, strict=True):
            # Values near 1 after two layers of rounded sums: a few roundings of the dtype.
            torch.testing.assert_close(mine.cpu(), other.cpu(), rtol=0.02, atol=8 * torch.finfo(dtype).eps)


def test_a_cached_graph_runs_without_tracing(tmp_path: Any) -> None:
    with torch.inference_mode():
        model = Decoder(torch.float16, 2).npu()
        expected = generate(model, 2, 4, new_caches(torch.float16, 2))
        cann_graph.register_converters()
        for traced in (True, False):
            torch._dynamo.reset()
            torch._dynamo.utils.counters.clear()
            settings = {"config": cann_graph.compiler_config(), "dynamic": False, "cache_dir": str(tmp_path)}
            cached = torchair.inference.cache_compile(model.forward, **settings)
            assert generate(cached, 2, 4, new_caches(torch.float16, 2)) == expected
            assert bool(torch._dynamo.utils.counters["stats"]) == traced
