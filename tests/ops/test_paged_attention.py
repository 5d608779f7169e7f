"""Paged attention equals its definition, whatever lies in blocks that nobody owns."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ascend_m1_ops import PagedKeys, paged_attention, paged_attention_reference, ragged_attention
from ascend_m1_ops.testing import LOW_PRECISION, rounding

HEADS, KV_HEADS, DIM, BLOCK = 6, 2, 8, 4


def paged(lengths: list[int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Caches with random keys in shuffled blocks, NaN everywhere else, and the block table."""
    counts = [-(-length // BLOCK) for length in lengths]
    order = torch.randperm(sum(counts) + 2)
    table = torch.full((len(lengths), max(counts)), int(order[-1]), dtype=torch.int32)
    caches = torch.full((2, len(order), BLOCK, KV_HEADS, DIM), float("nan"), dtype=dtype)
    used = 0
    for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        table[row, :count] = order[used : used + count].int()
        for position in range(length):
            caches[:, table[row, position // BLOCK].long(), position % BLOCK] = torch.randn(2, KV_HEADS, DIM).to(dtype)
        used += count
    return caches[0], caches[1], table


def check(out: Tensor, exact: Tensor, values: Tensor, roundings: float) -> None:
    atol = roundings * rounding(out.dtype) * values.nan_to_num().abs().max().item()
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=atol)


@pytest.mark.parametrize(("dtype", "roundings"), [(torch.float32, 30), (torch.bfloat16, 3), (torch.float16, 3)])
@pytest.mark.parametrize("on_device", [False, True])
@given(lengths=st.lists(st.integers(1, 13), min_size=1, max_size=5))
@settings(max_examples=15)
def test_a_decode_step_sees_every_key(
    dtype: torch.dtype, roundings: float, on_device: bool, lengths: list[int]
) -> None:
    k, v, table = paged(lengths, dtype)
    q = torch.randn(len(lengths), HEADS, DIM).to(dtype)
    keys = PagedKeys(table, None, torch.tensor(lengths)) if on_device else PagedKeys(table, lengths)
    exact = paged_attention_reference(
        q.double(), k.double(), v.double(), table, lengths, list(range(1, len(lengths) + 1)), DIM**-0.5
    )
    check(paged_attention(q, k, v, keys), exact, v, roundings)


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("dtype", LOW_PRECISION)
def test_scores_are_not_rounded(dtype: torch.dtype, on_device: bool) -> None:
    """See ``test_attention.py``: large scores, and products q · k that float16 does not hold."""
    k, v = (torch.randn(8, 16, KV_HEADS, 256).to(dtype) for _ in range(2))
    q = (torch.randn(2, HEADS, 256) * 6).to(dtype)
    table, lengths = torch.tensor([[1, 0, 5, 7], [3, 2, 6, 4]], dtype=torch.int32), [64, 50]
    for keys, atol in ((k, 1.5), (torch.full_like(k, 300.0), 3)):
        q = q if keys is k else torch.full_like(q, 300.0)
        where = PagedKeys(table, None, torch.tensor(lengths)) if on_device else PagedKeys(table, lengths)
        exact = paged_attention_reference(q.double(), keys.double(), v.double(), table, lengths, [1, 2], 1 / 16)
        check(paged_attention(q, keys, v, where), exact, v, atol)
        check(paged_attention_reference(q, keys, v, table, lengths, [1, 2], 1 / 16), exact, v, atol)


@given(pairs=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=4))
@settings(max_examples=25)
def test_prefill_continues_what_is_held(pairs: list[tuple[int, int]]) -> None:
    lengths = [new + held for new, held in pairs]
    ends = torch.tensor([new for new, _ in pairs]).cumsum(0).tolist()
    k, v, table = paged(lengths, torch.float32)
    q = torch.randn(ends[-1], HEADS, DIM)
    out = paged_attention(q, k, v, PagedKeys(table, lengths), query_ends=ends)
    exact = paged_attention_reference(q.double(), k.double(), v.double(), table, lengths, ends, DIM**-0.5)
    check(out, exact, v, 30)


@pytest.mark.parametrize("window", [None, 1, 3, 100])
def test_ragged_attention_equals_one_sequence_after_the_other(window: int | None) -> None:
    query_ends, key_ends = [3, 4, 9], [3, 8, 20]
    q, k, v = torch.randn(9, HEADS, DIM), torch.randn(20, KV_HEADS, DIM), torch.randn(20, KV_HEADS, DIM)
    out = ragged_attention(q, k, v, query_ends, key_ends, window=window)
    row = column = 0
    for row_end, column_end in zip(query_ends, key_ends, strict=True):
        for i in range(row, row_end):
            last = column_end - (row_end - i) + 1
            first = column if window is None else max(column, last - window)
            blocks = torch.zeros(1, 1, dtype=torch.int32)
            exact = paged_attention_reference(
                *(x.double() for x in (q[i : i + 1], k[None, first:last], v[None, first:last])),
                blocks,
                [last - first],
                [1],
                DIM**-0.5,
            )
            check(out[i : i + 1], exact, v, 30)
        row, column = row_end, column_end


def test_errors_name_the_numbers() -> None:
    k, v, table = paged([3, 5], torch.float32)
    with pytest.raises(ValueError, match="5 query heads cannot share 2"):
        paged_attention(torch.randn(2, 5, DIM), k, v, PagedKeys(table, [3, 5]))
    with pytest.raises(ValueError, match="block_table has 2 sequences"):
        paged_attention(torch.randn(3, HEADS, DIM), k, v, PagedKeys(table, [3, 5]))
    keys = PagedKeys(table, None, torch.tensor([3, 5]))
    with pytest.raises(ValueError, match="lengths must be given"):
        paged_attention(torch.randn(3, HEADS, DIM), k, v, keys, query_ends=[1, 3])
