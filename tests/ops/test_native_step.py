"""The compiled operators of a decode step against the definitions, and where they are not asked."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from ascend_m1_ops import (
    PagedKeys,
    TokenTable,
    add_rms_norm,
    conv_rope_cache,
    conv_rope_cache_reference,
    native,
    paged_attention,
    paged_attention_reference,
    rms_norm,
    rms_norm_reference,
    rope_tables,
    swiglu_packed,
    swiglu_reference,
)
from ascend_m1_ops.native import step
from ascend_m1_ops.testing import rounding

pytestmark = pytest.mark.skipif(not native.available(), reason="hardware: no AVX512-BF16")
ROUNDING = rounding(torch.bfloat16)
GEOMETRIES = [(20, 2, 256), (40, 8, 128), (3, 1, 32), (16, 1, 64)]


@pytest.mark.parametrize(("rows", "hidden"), [(1, 32), (5, 96), (70, 5120)])
def test_norm(rows: int, hidden: int) -> None:
    """One rounding of a result whose float32 sum is nearly exact."""
    x, residual, weight = (torch.randn(*shape).bfloat16() for shape in ((rows, hidden), (rows, hidden), (hidden,)))
    assert step.takes(x, residual, weight)
    got, total = add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(total, x + residual)
    for y, of in ((got, total), (rms_norm(x, weight, 1e-5), x)):
        torch.testing.assert_close(
            y.double(), rms_norm_reference(of.double(), weight.double(), 1e-5), rtol=1.01 * ROUNDING, atol=0
        )


@pytest.mark.parametrize(("rows", "inner"), [(1, 32), (5, 96), (9, 17408)])
def test_swiglu(rows: int, inner: int) -> None:
    """Two roundings; gates from far below to far above what e^x can hold."""
    gate_up = (torch.randn(rows, 2 * inner) * 60).bfloat16()
    gate_up[0, :4] = torch.tensor([-1e4, 1e4, 0.0, -95.0])
    exact = swiglu_reference(*gate_up.double().chunk(2, -1))
    torch.testing.assert_close(swiglu_packed(gate_up).double(), exact, rtol=2.02 * ROUNDING, atol=1e-30)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@given(data=st.data())
@settings(max_examples=10)
def test_cache_write_equals_the_definition(geometry: tuple[int, int, int], data: st.DataObject) -> None:
    """Any order of slots and rows, tokens without a slot, without a row and at a sequence's beginning."""
    (heads, kv_heads, dim), tokens = geometry, data.draw(st.integers(1, 6))
    slots = torch.randperm(24)[:tokens].int()
    rows = torch.randperm(8)[:tokens].int()
    for chosen in (slots, rows):
        chosen[torch.rand(tokens) < 0.2] = -1
    continues, positions = (torch.rand(tokens) < 0.7).int(), torch.randint(0, 50, (tokens,)).int()
    starts, borders = torch.arange(tokens).int(), torch.arange(tokens + 1).int()
    table = TokenTable(positions, slots, starts, borders, rows, continues)
    packed = torch.randn(tokens, (heads + 2 * kv_heads) * dim).bfloat16()
    taps, tables = torch.randn(2, kv_heads, 2).bfloat16(), rope_tables(torch.arange(50), dim, 1e4)
    before = [torch.randn(6, 8, kv_heads, dim)[:, ::2].bfloat16() for _ in "kv"]  # slots with gaps
    before.append(torch.randn(8, 2, kv_heads, dim).bfloat16())
    assert step.takes(packed, taps)
    assert step.takes_cache(heads, dim, *before[:2])
    got, exact = [tensor.clone() for tensor in before], [tensor.double() for tensor in before]
    q = conv_rope_cache(packed, taps, *tables, table, *got)
    wide = [tensor.double() for tensor in (packed, taps, *tables)]
    want = conv_rope_cache_reference(*wide, table, *exact)
    for ours, theirs in zip((q, *got), (want, *exact), strict=True):  # k is rounded twice
        largest = theirs.abs().max().item()
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=2 * ROUNDING * largest + 1e-5)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@given(lengths=st.lists(st.integers(1, 700), min_size=1, max_size=4))
@settings(max_examples=10)
def test_attention_equals_the_definition(geometry: tuple[int, int, int], lengths: list[int]) -> None:
    """Probabilities stay in float32: one rounding at the size of the largest value, and some for scores."""
    heads, kv_heads, dim = geometry
    counts = [-(-length // 128) for length in lengths]
    table = torch.zeros(len(lengths), max(counts), dtype=torch.int32)
    order = torch.randperm(sum(counts)).int()
    for row, blocks in zip(table, order.split(counts), strict=True):
        row[: len(blocks)] = blocks
    q = (2 * torch.randn(len(lengths), heads, dim)).bfloat16()
    k, v = (torch.randn(sum(counts), 128, kv_heads, dim).bfloat16() for _ in "kv")
    assert step.takes(q)
    assert step.takes_cache(heads, dim, k, v, table)
    got = paged_attention(q, k, v, PagedKeys(table, lengths))
    wide = (tensor.double() for tensor in (q, k, v))
    exact = paged_attention_reference(*wide, table, lengths, list(range(1, len(lengths) + 1)), dim**-0.5)
    torch.testing.assert_close(got.double(), exact, rtol=0, atol=1.5 * ROUNDING * v.abs().max().item())


def test_numbers_that_are_none_stay_so() -> None:
    """A request with such weights ends by it, so it must not be lost on the way; the others do not see it."""
    x = torch.randn(3, 64).bfloat16()
    x[1, 40] = float("nan")
    for y in (rms_norm(x, torch.ones(64).bfloat16(), 1e-5), swiglu_packed(x)):
        assert y.isnan().any(1).tolist() == [False, True, False]
    q, (k, v) = torch.randn(2, 4, 32).bfloat16(), (torch.randn(2, 128, 2, 32).bfloat16() for _ in "kv")
    k[1, 3] = float("nan")
    table = torch.tensor([[0], [1]], dtype=torch.int32)
    out = paged_attention(q, k, v, PagedKeys(table, [100, 100]))
    assert out.isnan().all(2).all(1).tolist() == [False, True]
    assert paged_attention(q, k, v, PagedKeys(table, [100, 3])).isfinite().all()


def test_where_others_compute() -> None:
    x = torch.randn(2, 64).bfloat16()
    assert step.takes(x)
    assert not step.takes(x.float())
    assert not step.takes(x[:, ::2])
    assert not step.takes(x[:, :40].contiguous())
    assert not step.takes(x.clone().requires_grad_())
    with torch.no_grad():
        assert step.takes(x.clone().requires_grad_())
    assert not step.takes(x, torch.ones(2, 2))
    k = torch.zeros(2, 8, 1, 64).bfloat16()
    assert step.takes_cache(16, 64, k, k)
    assert not step.takes_cache(17, 64, k, k)
    assert not step.takes_cache(16, 64, k, k[:, ::2])
    assert not step.takes_cache(16, 64, k.half(), k.half())
    assert not step.takes_cache(16, 32, k, k)
    assert not step.takes_cache(16, 64, k, k[:1])


def test_who_traces_or_transforms_sees_torch() -> None:
    x, weight = torch.randn(2, 64).bfloat16(), torch.ones(64).bfloat16()

    def norm(x: Tensor) -> Tensor:
        return rms_norm(x, weight, 1e-5)

    want = norm(x.float().bfloat16())
    for seen in (torch.jit.trace(norm, (x,)), make_fx(norm)(x), torch.vmap(norm)):
        torch.testing.assert_close(seen(x), want, rtol=2 * ROUNDING, atol=0)
    tangent = torch.func.jvp(norm, (x,), (torch.ones_like(x),))[1]
    assert tangent.isfinite().all()
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert isinstance(norm(x), FakeTensor)


def test_what_does_not_fit_is_refused() -> None:
    """Sizes go by address, so the operators look first, or leave it to torch."""
    x = torch.randn(4, 64).bfloat16()
    with pytest.raises(RuntimeError, match="weight"):
        rms_norm(x, torch.ones(32).bfloat16(), 1e-5)
    q, (k, v) = torch.randn(2, 4, 32).bfloat16(), (torch.randn(2, 8, 2, 32).bfloat16() for _ in "kv")
    table = torch.tensor([[0], [1]], dtype=torch.int32)
    for lengths in ([3], [3, 3, 3], [30, 3]):
        with pytest.raises((ValueError, RuntimeError)):
            paged_attention(q, k, v, PagedKeys(table, lengths))
    assert paged_attention(q, k, v, PagedKeys(table, [3, 0])).isfinite().all()
    one = torch.zeros(1, dtype=torch.int32)
    good = TokenTable(one, one, one, torch.tensor([0, 1], dtype=torch.int32), one, one)
    tables = rope_tables(torch.arange(9), 32, 1e4)
    packed, taps, state = torch.randn(1, 8 * 32).bfloat16(), torch.ones(2, 2, 2).bfloat16(), torch.zeros(3, 2, 2, 32)
    for bad in (replace(good, positions=one + 9), replace(good, slots=one + 16), replace(good, state_rows=one + 3)):
        with pytest.raises(IndexError, match="token 0: its position, slot or state row is out of bounds"):
            conv_rope_cache(packed, taps, *tables, bad, k, v, state.bfloat16())


@pytest.mark.parametrize("below", [0.0, 60.0, 95.0, 1e30, float("inf")])
def test_keys_far_below_the_largest(below: float) -> None:
    """They weigh nothing, in whichever block of keys they come, and make no number that is none."""
    q = torch.zeros(1, 2, 32).bfloat16()
    q[..., 0] = 1
    k, v = torch.zeros(2, 128, 1, 32).bfloat16(), torch.randn(2, 128, 1, 32).bfloat16()
    k.view(-1, 32)[:130, 0] = -below
    out = paged_attention(q, k, v, PagedKeys(torch.tensor([[0, 1]], dtype=torch.int32), [200]), scale=1.0)
    weight = math.exp(-below)
    parts = v.view(-1, 32)[:200].double()
    exact = (parts[:130].sum(0) * weight + parts[130:].sum(0)) / (130 * weight + 70)
    torch.testing.assert_close(out[0, 0].double(), exact, rtol=0, atol=1.5 * ROUNDING * 4)
