"""Attention against its definition, over everything that Positions can describe."""

from __future__ import annotations

import importlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ascend_m1_ops import Positions, attention, attention_reference, sdpa
from ascend_m1_ops.attention.kernels import Kernel
from ascend_m1_ops.attention.npu import compose
from ascend_m1_ops.testing import LOW_PRECISION, compiled, gradients, rounding

WINDOW = 8


def make(
    batch: int, queries: int, keys: int, heads: int = 4, kv_heads: int = 2, head_dim: int = 8
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k, v in float64."""
    shapes = ((queries, heads), (keys, kv_heads), (keys, kv_heads))
    q, k, v = (torch.randn(batch, length, count, head_dim, dtype=torch.float64) for length, count in shapes)
    return q, k, v


def aligned(q: torch.Tensor, k: torch.Tensor) -> Positions:
    return Positions.aligned(q.shape[1], k.shape[1], q.device)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 16 queries, so that short sequences already take several."""
    monkeypatch.setattr(importlib.import_module("ascend_m1_ops.attention"), "_BLOCK", 16)


@pytest.mark.parametrize("window", [None, 1, WINDOW, 1000])
@pytest.mark.parametrize("queries", [1, 2, WINDOW - 1, WINDOW, WINDOW + 1, 16, 17, 50])
@pytest.mark.parametrize("earlier", [0, 1, WINDOW - 1, WINDOW, 40])
def test_queries_last_of_keys(queries: int, earlier: int, window: int | None) -> None:
    q, k, v = make(2, queries, earlier + queries)
    want = attention_reference(q, k, v, aligned(q, k), window=window)
    torch.testing.assert_close(attention(q, k, v, window=window), want)
    torch.testing.assert_close(attention(q, k, v, aligned(q, k), window=window), want)


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 4), (6, 2), (10, 1)])
@pytest.mark.parametrize("queries", [1, 3, 20])
def test_grouped_heads(heads: int, kv_heads: int, queries: int) -> None:
    """Query head h reads key head h // group."""
    q, k, v = make(2, queries, queries + 5, heads, kv_heads)
    each = [h // (heads // kv_heads) for h in range(heads)]
    want = attention_reference(q, k[:, :, each], v[:, :, each], aligned(q, k))
    torch.testing.assert_close(attention(q, k, v), want)


@pytest.mark.parametrize(("batch", "queries", "keys"), [(0, 3, 3), (2, 0, 0), (2, 0, 5), (1, 1, 1)])
@pytest.mark.parametrize("window", [None, 2])
def test_nothing_and_almost_nothing(batch: int, queries: int, keys: int, window: int | None) -> None:
    q, k, v = make(batch, queries, keys)
    torch.testing.assert_close(
        attention(q, k, v, window=window), attention_reference(q, k, v, aligned(q, k), window=window)
    )


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("in_order", [False, True])
def test_packed_documents_equal_each_alone(window: int | None, in_order: bool) -> None:
    lengths = [1, 20, 2, 17]
    q, k, v = make(1, sum(lengths), sum(lengths))
    where = torch.cat([torch.arange(n) for n in lengths]).unsqueeze(0)
    document = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths)).unsqueeze(0)
    got = attention(q, k, v, Positions(where, where, document, document, in_order=in_order), window=window)
    alone = [
        attention(*part, window=window) for part in zip(*(x.split(lengths, dim=1) for x in (q, k, v)), strict=True)
    ]
    torch.testing.assert_close(got, torch.cat(alone, dim=1))


@pytest.mark.parametrize("queries", [1, 2, 33])
@pytest.mark.parametrize("window", [None, WINDOW])
def test_order_of_the_slots_does_not_matter(queries: int, window: int | None) -> None:
    """A ring holds its keys in any order, among empty slots."""
    q, k, v = make(1, queries, 40)
    want = attention_reference(q, k, v, aligned(q, k), window=window)
    order = torch.randperm(45)
    slots = torch.cat([torch.arange(40), torch.full((5,), -1)])[order].unsqueeze(0)
    k, v = (torch.cat([x, torch.randn_like(x[:, :5])], dim=1)[:, order] for x in (k, v))
    where = torch.arange(40 - queries, 40).unsqueeze(0)
    torch.testing.assert_close(attention(q, k, v, Positions(where, slots), window=window), want)


@pytest.mark.parametrize("queries", [1, 5])
def test_slots_beyond_the_slice_are_never_read(queries: int) -> None:
    """Keys are a slice of a longer cache whose other slots hold NaN."""
    q, k, v = make(2, queries, 9)
    stores = [torch.full((2, 20, 2, 8), torch.nan, dtype=torch.float64) for _ in range(2)]
    for store, x in zip(stores, (k, v), strict=True):
        store[:, 5:14] = x
    held_k, held_v = (store[:, 5:14] for store in stores)
    torch.testing.assert_close(attention(q, held_k, held_v), attention_reference(q, k, v, aligned(q, k)))


@pytest.mark.parametrize("queries", [1, 4, 40])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *LOW_PRECISION])
@pytest.mark.parametrize("function", [attention, attention_reference])
def test_a_query_that_sees_nothing_gives_zeros_and_finite_gradients(function, dtype, queries) -> None:  # type: ignore[no-untyped-def]
    q, k, v = (x.to(dtype) for x in make(2, queries, 40))
    where = torch.arange(40 - queries, 40).expand(2, -1)
    slots = torch.stack([torch.full((40,), -1), torch.arange(40)])  # the first row's cache is empty
    who = Positions(where, slots)
    out = function(q, k, v, who)
    assert torch.equal(out[0], torch.zeros_like(out[0]))
    assert out[1].count_nonzero() == out[1].numel()
    for grad in gradients(lambda *x: function(*x, who), [q, k, v]):
        assert grad.isfinite().all()
        assert torch.equal(grad[0], torch.zeros_like(grad[0]))


@pytest.mark.parametrize("dtype", [torch.float32, *LOW_PRECISION])
@pytest.mark.parametrize("window", [None, WINDOW])
@pytest.mark.parametrize("queries", [1, 4, 64])
def test_low_precision(queries: int, window: int | None, dtype: torch.dtype) -> None:
    """Scores and sums are float32; the weights and the result are rounded: 3 roundings of the largest value."""
    q, k, v = (x.to(dtype) for x in make(2, queries, 64, head_dim=32))
    exact = attention_reference(q.double(), k.double(), v.double(), aligned(q, k), window=window)
    atol = (3 if dtype != torch.float32 else 30) * rounding(dtype) * v.abs().max().item()
    torch.testing.assert_close(attention(q, k, v, window=window).double(), exact, rtol=0, atol=atol)


@pytest.mark.parametrize("kernel", [sdpa, compose])
@pytest.mark.parametrize("head_dim", [128, 256])
@pytest.mark.parametrize("window", [None, WINDOW])
@pytest.mark.parametrize("queries", [1, 4, 64])
@pytest.mark.parametrize("dtype", LOW_PRECISION)
def test_large_scores(dtype: torch.dtype, queries: int, window: int | None, head_dim: int, kernel: Kernel) -> None:
    """A score of 20 rounded to 16 bits is off by more than its weight's own rounding: it stays in float32.

    Seen, in roundings of the largest value: below 1, and 1.5 to 5 where scores are rounded.
    """
    q, k, v = (x.to(dtype) for x in make(8, queries, 64, head_dim=head_dim))
    q = q * 6
    exact = attention_reference(q.double(), k.double(), v.double(), aligned(q, k), window=window)
    got = attention(q, k, v, window=window, kernel=kernel).double()
    torch.testing.assert_close(got, exact, rtol=0, atol=1.5 * rounding(dtype) * v.abs().max().item())


@pytest.mark.parametrize("function", [sdpa, compose, None])
@pytest.mark.parametrize("size", [17.0, 300.0])
@pytest.mark.parametrize("queries", [1, 4, 40])
def test_products_beyond_float16(queries: int, size: float, function: Kernel | None) -> None:
    """q · k = 256 size² is more than float16 holds; all scores are equal, so the result is a mean of values."""
    v = torch.randn(1, 40, 2, 256).half()
    q, k = torch.full((1, queries, 4, 256), size).half(), torch.full_like(v, size)
    who = aligned(q, k)
    got = attention(q, k, v, kernel=function) if function else attention_reference(q, k, v, who)
    exact = attention_reference(q.double(), k.double(), v.double(), who)
    torch.testing.assert_close(got.double(), exact, rtol=0, atol=3 * rounding(v.dtype) * v.abs().max().item())


@pytest.mark.parametrize(("queries", "keys"), [(1, 4), (3, 3), (3, 5), (18, 18)])
@pytest.mark.parametrize("window", [None, 2])
def test_gradient(queries: int, keys: int, window: int | None) -> None:
    q, k, v = (x.requires_grad_() for x in make(1, queries, keys, head_dim=2))
    assert torch.autograd.gradcheck(lambda *x: attention(*x, window=window), (q, k, v), fast_mode=True)
    who = aligned(q, k)
    got = gradients(lambda *x: attention(*x, window=window), [q, k, v])
    torch.testing.assert_close(got, gradients(lambda *x: attention_reference(*x, who, window=window), [q, k, v]))


@pytest.mark.parametrize("window", [None, 2])
def test_gradient_through_documents_and_a_ring(window: int | None) -> None:
    """Two packed documents; then two queries over slots in ring order, one of them empty."""
    where, document = torch.tensor([[0, 1, 2, 0, 1]]), torch.tensor([[0, 0, 0, 1, 1]])
    packed = Positions(where, where, document, document, in_order=True, gapless=True)
    ring = Positions(torch.tensor([[4, 5]]), torch.tensor([[4, 5, 2, 3, -1]]))
    for positions, queries in ((packed, 5), (ring, 2)):
        inputs = [x.requires_grad_() for x in make(1, queries, 5, head_dim=2)]

        def run(*x: torch.Tensor, who: Positions = positions) -> torch.Tensor:
            return attention(*x, who, window=window)

        assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize(("queries", "window"), [(1, None), (6, None), (6, 3)])
def test_compiled(queries: int, window: int | None) -> None:
    q, k, v = (x.float() for x in make(1, queries, 6))
    who = aligned(q, k)
    run = compiled(lambda q, k, v: attention(q, k, v, window=window))
    torch.testing.assert_close(run(q, k, v), attention(q, k, v, window=window))
    run = compiled(lambda q, k, v, i, j: attention(q, k, v, Positions(i, j), window=window))
    torch.testing.assert_close(run(q, k, v, who.query, who.key), attention(q, k, v, who, window=window))


def test_a_window_block_meets_only_its_own_keys() -> None:
    """Time and memory grow with T · window: no block sees more than window + block keys."""
    seen = []

    def kernel(q, k, v, mask, causal, scale):  # type: ignore[no-untyped-def]
        seen.append(k.shape[1])
        return sdpa(q, k, v, mask, causal, scale)

    attention(*make(1, 100, 100), window=WINDOW, kernel=kernel)
    assert len(seen) == 7
    assert max(seen) <= WINDOW - 1 + 16


def test_heads_that_cannot_be_shared() -> None:
    with pytest.raises(ValueError, match="3 query heads cannot share 2"):
        attention(*make(1, 2, 2, heads=3))


@given(
    queries=st.integers(1, 40),
    earlier=st.integers(0, 20),
    window=st.none() | st.integers(1, 30),
    padding=st.integers(0, 10),
    kv_heads=st.sampled_from([1, 2, 4]),
)
def test_padding_and_cache(queries: int, earlier: int, window: int | None, padding: int, kv_heads: int) -> None:
    """Padding keys before the real ones change nothing."""
    q, k, v = make(1, queries, earlier + queries, kv_heads=kv_heads)
    want = attention_reference(q, k, v, aligned(q, k), window=window)
    k, v = (torch.cat([torch.randn_like(x[:, :1]).expand(-1, padding, -1, -1), x], dim=1) for x in (k, v))
    where = torch.arange(-padding, earlier + queries).clamp_min(-1).unsqueeze(0)
    got = attention(q, k, v, Positions(where[:, padding + earlier :], where), window=window)
    torch.testing.assert_close(got, want)
