"""Paged cache and table updates: each token lands where its page says, nothing else changes."""

from __future__ import annotations

import pytest
import torch
import torch_npu
from hypothesis import given, settings
from hypothesis import strategies as st

import ascend_m1_hostnpu


@settings(max_examples=15, deadline=None)
@given(data=st.data(), tokens=st.integers(0, 20), dims=st.sampled_from(((16, 16), (32, 16))), wide=st.booleans())
def test_scatter_writes_each_token_to_its_slot(
    data: st.DataObject, tokens: int, dims: tuple[int, int], wide: bool
) -> None:
    blocks, size, heads = 3, 8, 2
    slots = data.draw(st.permutations(range(blocks * size)))[:tokens]
    caches = [torch.randn(blocks, size, heads, dim).half() for dim in dims]
    new = [torch.randn(tokens, heads, dim).half() for dim in dims]
    on_device = [c.npu() for c in caches]
    mapping = torch.tensor(slots, dtype=torch.int64 if wide else torch.int32)
    torch_npu.npu_scatter_pa_kv_cache(new[0].npu(), new[1].npu(), *on_device, mapping.npu(), cache_mode="Norm")
    for cache, rows, got in zip(caches, new, on_device, strict=True):
        for slot, row in zip(slots, rows, strict=True):
            cache[slot // size, slot % size] = row
        torch.testing.assert_close(got.cpu(), cache, rtol=0, atol=0)


def test_scatter_into_nz_blocks() -> None:
    """PA_NZ: [blocks, heads * dim / 16, block_size, 16], element c of a token in group c / 16."""
    caches = [torch.zeros(2, 4, 8, 16).half() for _ in range(2)]
    new = [torch.randn(3, 2, 32).half() for _ in range(2)]
    on_device = [c.npu() for c in caches]
    slots = [9, 0, 15]
    torch_npu.npu_scatter_pa_kv_cache(*(n.npu() for n in new), *on_device, torch.tensor(slots, dtype=torch.int32).npu())
    for cache, rows, got in zip(caches, new, on_device, strict=True):
        for slot, row in zip(slots, rows, strict=True):
            for c, value in enumerate(row.flatten()):
                cache[slot // 8, c // 16, slot % 8, c % 16] = value
        torch.testing.assert_close(got.cpu(), cache, rtol=0, atol=0)


def test_scatter_touches_the_tokens_only() -> None:
    cache = torch.zeros(64, 16, 2, 16).half().npu()
    key = torch.randn(3, 2, 16).half().npu()
    with ascend_m1_hostnpu.recording() as log:
        torch_npu.npu_scatter_pa_kv_cache(
            key, key, cache, cache.clone(), torch.tensor([0, 5, 700], dtype=torch.int32).npu(), cache_mode="Norm"
        )
    (launch,) = [one for one in log.kernels if one.name == "aclnnScatterPaKvCache"]
    assert (launch.read, launch.written) == (2 * 3 * 2 * 16 * 2 + 3 * 4, 2 * 3 * 2 * 16 * 2)


@settings(max_examples=10, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=3).filter(sum),
    cumulative=st.booleans(),
    skipped=st.integers(0, 1),
)
def test_gather_returns_what_the_blocks_hold(lengths: list[int], cumulative: bool, skipped: int) -> None:
    size, columns = 4, 4
    cache = torch.randn(len(lengths) * columns, size, 2, 8).bfloat16()
    table = torch.randperm(len(cache)).view(len(lengths), columns).int()
    out = [torch.empty(sum(lengths), 2, 8).bfloat16().npu() for _ in range(2)]
    told = torch.tensor([0, *lengths]).cumsum(0).int() if cumulative else torch.tensor(lengths).int()
    offset = torch.full((len(lengths),), skipped * size, dtype=torch.int32)
    torch_npu.npu_gather_pa_kv_cache(
        cache.npu(), cache.npu(), table.npu(), told.npu(), *out, seq_offset=offset.npu(), is_seq_lens_cumsum=cumulative
    )
    want = [cache[table[b, i // size + skipped], i % size] for b, n in enumerate(lengths) for i in range(n)]
    for got in out:
        torch.testing.assert_close(got.cpu(), torch.stack(want), rtol=0, atol=0)


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("strided", [False, True])
def test_scatter_nd_update_replaces_the_indexed_parts(rank: int, strided: bool) -> None:
    table = torch.randn(6, 3, 4)
    on_device = torch.zeros(6, 6, 4).npu()[:, :3] if strided else torch.empty(6, 3, 4).npu()
    on_device.copy_(table)
    indices = torch.tensor([[5], [0]]) if rank == 1 else torch.tensor([[5, 1], [0, 2]])
    updates = torch.randn(2, *table.shape[rank:])
    torch_npu.npu_scatter_nd_update_(on_device, indices.npu(), updates.npu())
    for index, update in zip(indices.tolist(), updates, strict=True):
        table[tuple(index)] = update
    torch.testing.assert_close(on_device.cpu(), table, rtol=0, atol=0)
