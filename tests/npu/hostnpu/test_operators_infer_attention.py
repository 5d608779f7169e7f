"""npu_fused_infer_attention_score (v1, v2) equals softmax attention as its page defines it."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch_npu
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import ascend_m1_hostnpu

from . import definitions
from .checks import assert_rounded

BLOCK = 16
TRIANGLE = torch.triu(torch.ones(2048, 2048, dtype=torch.bool), 1)


def random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape).to(dtype)


def sees_of(mode: int, rows: int, keys: int, before: int) -> definitions.Sees:
    if mode == 0:
        return definitions.everything
    return definitions.causal(rows, keys) if mode == 3 else definitions.band(rows, keys, before, 0)


def options(mode: int, before: int = 2**31 - 1) -> dict[str, Any]:
    if mode == 0:
        return {"sparse_mode": 0}
    return {"sparse_mode": mode, "atten_mask": TRIANGLE.npu(), "pre_tokens": before, "next_tokens": 0}


def pages(sequences: list[Tensor], width: int) -> tuple[Tensor, Tensor]:
    """A cache with the sequences in blocks handed out backwards, and their block table."""
    counts = [-(-max(len(s), 1) // BLOCK) for s in sequences]
    cache = torch.full((sum(counts) + 1, BLOCK, width), float("nan")).to(sequences[0].dtype)
    free = list(range(sum(counts) + 1))
    table = torch.zeros(len(sequences), max(counts), dtype=torch.int32)
    for row, (sequence, count) in enumerate(zip(sequences, counts, strict=True)):
        blocks = [free.pop() for _ in range(count)]
        definitions.paged(sequence, blocks, BLOCK, cache)
        table[row, :count] = torch.tensor(blocks)
    return cache, table


def check_packed(lengths: list[tuple[int, int]], mode: int, before: int, is_paged: bool, version: int) -> None:
    """Sequences of (new, all) tokens as one TND call against one definition for each sequence."""
    heads, kv_heads, dim = 4, 2, 32
    scale = dim**-0.5
    queries = [random(q, heads, dim) for q, _ in lengths]
    keys = [random(k, kv_heads, dim) for _, k in lengths]
    values = [random(k, kv_heads, dim) for _, k in lengths]
    rows = list(itertools.accumulate(q for q, _ in lengths))
    counts = [k for _, k in lengths]
    if is_paged:
        key, table = pages(keys, kv_heads * dim)
        value, _ = pages(values, kv_heads * dim)
        extra: dict[str, Any] = {"block_table": table.npu(), "block_size": BLOCK}
    else:
        key, value, extra, counts = torch.cat(keys), torch.cat(values), {}, list(itertools.accumulate(counts))
    names = ("actual_seq_lengths", "actual_seq_lengths_kv", "num_heads", "scale", "softmax_lse_flag")
    function = torch_npu.npu_fused_infer_attention_score
    if version == 2:
        names = ("actual_seq_qlen", "actual_seq_kvlen", "num_query_heads", "softmax_scale", "return_softmax_lse")
        function = torch_npu.npu_fused_infer_attention_score_v2
    extra.update(options(mode, before), **dict(zip(names, (rows, counts, heads, scale, True), strict=True)))
    out, lse = function(
        torch.cat(queries).npu(), key.npu(), value.npu(), num_key_value_heads=kv_heads, input_layout="TND", **extra
    )
    want = [
        definitions.attention(q, k, v, scale, sees_of(mode, len(q), len(k), before))
        for q, k, v in zip(queries, keys, values, strict=True)
    ]
    assert_rounded(out, torch.cat([w[0] for w in want]))
    assert_rounded(lse[..., 0], torch.cat([w[1] for w in want]))


LENGTHS = st.lists(
    st.tuples(st.integers(1, 7), st.integers(0, 40)).map(lambda t: (t[0], t[0] + t[1])), min_size=1, max_size=4
)


@settings(max_examples=25, deadline=None)
@given(
    lengths=LENGTHS,
    mode=st.sampled_from((0, 3, 4)),
    before=st.integers(0, 30),
    is_paged=st.booleans(),
    version=st.sampled_from((1, 2)),
)
def test_packed_equals_definition(
    lengths: list[tuple[int, int]], mode: int, before: int, is_paged: bool, version: int
) -> None:
    check_packed(lengths, mode, before, is_paged, version)


@pytest.mark.parametrize("mode", [0, 3, 4])
def test_sequence_without_keys_gives_zeros_and_infinite_lse(mode: int) -> None:
    check_packed([(2, 5), (1, 0), (3, 3)], mode, 2, True, 2)


def test_more_queries_than_keys_hide_the_first_rows() -> None:
    check_packed([(4, 2), (1, 1)], 3, 0, False, 1)


@pytest.mark.parametrize("dim", [64, 256])
def test_head_size_and_cache_layout(dim: int) -> None:
    """D 256 goes through the three-dimensional cache; D 64 also through [blocks, KV, block_size, D], equally."""
    query, lengths = random(5, 10, dim), [40, 17]
    keys = [random(n, 1, dim) for n in lengths]
    values = [random(n, 1, dim) for n in lengths]
    (key, table), (value, _) = pages(keys, dim), pages(values, dim)
    common = {
        "atten_mask": TRIANGLE.npu(),
        "actual_seq_lengths": [3, 5],
        "actual_seq_lengths_kv": lengths,
        "block_table": table.npu(),
        "num_heads": 10,
        "num_key_value_heads": 1,
        "scale": dim**-0.5,
        "input_layout": "TND",
        "sparse_mode": 3,
        "block_size": BLOCK,
    }
    out, _ = torch_npu.npu_fused_infer_attention_score(query.npu(), key.npu(), value.npu(), **common)
    want = [
        definitions.attention(q, k, v, dim**-0.5, definitions.causal(len(q), len(k)))[0]
        for q, k, v in zip(query.split([3, 2]), keys, values, strict=True)
    ]
    assert_rounded(out, torch.cat(want))
    if dim == 64:
        by_head = (c.view(-1, BLOCK, 1, dim).transpose(1, 2).contiguous().npu() for c in (key, value))
        other, _ = torch_npu.npu_fused_infer_attention_score(query.npu(), *by_head, **common)
        torch.testing.assert_close(other, out, rtol=0, atol=0)


def dense(tensor: Tensor, layout: str) -> Tensor:
    """[batch, seq, heads, dim] in a layout, on the device."""
    if layout == "BNSD":
        return tensor.transpose(1, 2).contiguous().npu()
    return tensor.flatten(2).npu() if layout == "BSH" else tensor.npu()


@pytest.mark.parametrize("layout", ["BSH", "BSND", "BNSD"])
@pytest.mark.parametrize("mode", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_dense_equals_definition(layout: str, mode: int, masked: bool) -> None:
    batch, rows, count, heads, kv_heads, dim = 2, 5, 9, 4, 2, 16
    query, key, value = (
        random(batch, rows, heads, dim),
        random(batch, count, kv_heads, dim),
        random(batch, count, kv_heads, dim),
    )
    full = torch.rand(batch, 1, rows, count) < 0.4
    full[..., 0] = False
    extra: dict[str, Any] = {"sparse_mode": mode}
    if mode in (0, 1):
        extra["atten_mask"] = full.npu() if masked or mode == 1 else None
    else:
        extra |= {"atten_mask": TRIANGLE.npu(), "pre_tokens": 3, "next_tokens": 1}
    lengths = {"actual_seq_lengths_kv": [count, 7]} if masked else {}
    out, lse = torch_npu.npu_fused_infer_attention_score(
        *(dense(t, layout) for t in (query, key, value)),
        num_heads=heads,
        num_key_value_heads=kv_heads,
        scale=0.3,
        input_layout=layout,
        softmax_lse_flag=True,
        **extra,
        **lengths,
    )
    want_out, want_lse = [], []
    for b in range(batch):
        used = (count, 7)[b] if masked else count
        sees = {
            0: (lambda i, j, b=b: not full[b, 0, i, j]) if masked else definitions.everything,
            1: lambda i, j, b=b: not full[b, 0, i, j],
            2: lambda i, j: j <= i,
            3: definitions.causal(rows, used),
            4: definitions.band(rows, used, 3, 1),
        }[mode]
        one = definitions.attention(query[b], key[b, :used], value[b, :used], 0.3, sees)
        want_out.append(one[0])
        want_lse.append(one[1].T)
    got = out.cpu().transpose(1, 2) if layout == "BNSD" else out.cpu().view(batch, rows, heads, dim)
    assert_rounded(got, torch.stack(want_out))
    assert_rounded(lse[..., 0], torch.stack(want_lse))


def test_one_query_outside_tnd_ignores_the_window() -> None:
    """The page: sparse_mode and pre_tokens are void when S is 1, so every key is seen."""
    query, key, value = random(1, 1, 2, 16), random(1, 20, 2, 16), random(1, 20, 2, 16)
    out, _ = torch_npu.npu_fused_infer_attention_score(
        *(dense(t, "BSH") for t in (query, key, value)), num_heads=2, scale=0.25, input_layout="BSH", **options(4, 3)
    )
    want, _ = definitions.attention(query[0], key[0], value[0], 0.25, definitions.everything)
    assert_rounded(out.view(1, 2, 16), want)


@pytest.mark.parametrize(("mode", "seen"), [(0, 100), (3, 100), (4, 4 + 9)])
def test_traffic_counts_live_keys_only(mode: int, seen: int) -> None:
    """A window of 10 keys and 4 new tokens: 13 keys and values of the 100 in the cache, which has room for 4096."""
    cache = random(256, BLOCK, 32)
    extra = options(mode, 9)
    with ascend_m1_hostnpu.recording() as log:
        torch_npu.npu_fused_infer_attention_score(
            random(4, 4, 16).npu(),
            cache.npu(),
            cache.npu(),
            actual_seq_lengths=[4],
            actual_seq_lengths_kv=[100],
            block_table=torch.arange(8, dtype=torch.int32)[None].npu(),
            num_heads=4,
            num_key_value_heads=2,
            scale=1.0,
            input_layout="TND",
            block_size=BLOCK,
            **extra,
        )
    (launch,) = log.kernels
    assert launch.name == "aclnnFusedInferAttentionScoreV3"
    assert launch.read == seen * 2 * 32 * 2 + 4 * 4 * 16 * 2 + 8 * 4
    assert launch.written == 4 * 4 * 16 * 2


@pytest.mark.parametrize("masked", [False, True])
def test_prompt_flash_attention_equals_definition(masked: bool) -> None:
    query, key, value = random(2, 3, 4, 16), random(2, 5, 2, 16), random(2, 5, 2, 16)
    extra = {"sparse_mode": 3, "atten_mask": TRIANGLE.npu()} if masked else {}
    out = torch_npu.npu_prompt_flash_attention(
        *(dense(t, "BSH") for t in (query, key, value)), num_heads=4, num_key_value_heads=2, scale_value=0.3, **extra
    )
    sees = definitions.causal(3, 5) if masked else definitions.everything
    want = [definitions.attention(query[b], key[b], value[b], 0.3, sees)[0] for b in range(2)]
    assert_rounded(out.view(2, 3, 4, 16), torch.stack(want))


def test_incre_flash_attention_equals_definition_over_pages() -> None:
    lengths = [20, 7]
    query = random(2, 1, 4, 16)
    keys, values = [random(n, 2, 16) for n in lengths], [random(n, 2, 16) for n in lengths]
    (key, table), (value, _) = pages(keys, 32), pages(values, 32)
    out = torch_npu.npu_incre_flash_attention(
        dense(query, "BSH"),
        key.npu(),
        value.npu(),
        actual_seq_lengths=lengths,
        block_table=table.npu(),
        num_heads=4,
        num_key_value_heads=2,
        scale_value=0.3,
        block_size=BLOCK,
    )
    pairs = zip(query, keys, values, strict=True)
    want = [definitions.attention(q, k, v, 0.3, definitions.everything)[0] for q, k, v in pairs]
    assert_rounded(out.view(2, 1, 4, 16), torch.stack(want))
