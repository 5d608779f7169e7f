"""The fused convolution, rotation and cache write against its definition and against its parts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ascend_m1_ops import (
    TokenTable,
    apply_rope,
    conv_rope_cache,
    conv_rope_cache_reference,
    short_conv,
)
from ascend_m1_ops.testing import LOW_PRECISION, rounding
from tests.ops.conv_rope_cases import BLOCK_SIZE, Case, assert_same, make, run

pytestmark = pytest.mark.usefixtures("block_sizes")

LENGTHS = [[], [0], [1], [7], [1, 1, 1, 1, 1], [0, 3, 0, 0, 1, 2, 0], [9, 1, 14]]
GEOMETRIES = [(6, 2, 8), (3, 1, 2), (9, 3, 6), (20, 2, 256), (40, 8, 128)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *LOW_PRECISION])
@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_equals_the_definition(lengths: list[int], padding: int, dtype: torch.dtype) -> None:
    """k is rounded twice, each time by half a spacing at the size of the largest element; q and v once.

    What is not written, other slots and other rows, stays as it was: NaN.
    """
    case = make(lengths, dtype, padding=padding)
    got, want = run(conv_rope_cache, case), run(conv_rope_cache_reference, case.to(torch.float64))
    largest = max((x.nan_to_num().abs().max().item() for x in want if x.numel()), default=0)
    float32_error = 0 if dtype == torch.float64 else 8 * torch.finfo(torch.float32).eps
    exact = [x.double() for x in got]
    assert [x.dtype for x in got] == [dtype] * 4
    assert_same(exact, want, atol=(2 * rounding(dtype) + float32_error) * largest)


@pytest.mark.parametrize("dtype", [torch.float32, *LOW_PRECISION])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_equals_its_parts_bit_for_bit(geometry: tuple[int, int, int], dtype: torch.dtype) -> None:
    case = make([3, 0, 1, 6], dtype, geometry, plain=True)
    assert_same(run(conv_rope_cache, case), run(unfused, case))


def unfused(
    packed: Tensor,
    weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    table: TokenTable,
    k_cache: Tensor,
    v_cache: Tensor,
    state: Tensor,
) -> Tensor:
    """``short_conv``, ``apply_rope`` and a cache write, for sequences that all continue."""
    kv_heads, head_dim = k_cache.shape[2:]
    q, kv = packed.unflatten(1, (-1, head_dim)).tensor_split([-2 * kv_heads], dim=1)
    rows, slots = table.state_rows.long(), table.slots.long()
    out, after = short_conv(kv.unflatten(1, (2, kv_heads)), weight, state[rows], table.cu_seqlens)
    cos, sin = cos[table.positions.long()], sin[table.positions.long()]
    k_cache[slots // BLOCK_SIZE, slots % BLOCK_SIZE] = apply_rope(out[:, 0], cos, sin)
    v_cache[slots // BLOCK_SIZE, slots % BLOCK_SIZE] = out[:, 1]
    state[rows] = after
    return apply_rope(q, cos, sin)


def part(case: Case, lengths: list[int], take: Tensor) -> Case:
    """The tokens ``take`` of a case as sequences of these lengths, continuing their state."""
    table = case.table
    table = TokenTable.prefill(lengths, table.positions[take], table.slots[take], table.state_rows, table.continues)
    return replace(case, packed=case.packed[take], table=table)


@given(lengths=st.lists(st.integers(0, 9), max_size=5), cut=st.integers(0, 9))
def test_chunks_equal_the_whole(lengths: list[int], cut: int) -> None:
    """Any split of every sequence into two chunks: the state carries all that the second needs."""
    case = make(lengths, torch.bfloat16, plain=True)
    want = run(conv_rope_cache, case)
    chunked, q = case.fresh(), torch.empty_like(want[0])
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths, dtype=torch.long))
    within = torch.arange(sum(lengths)) - case.table.cu_seqlens[:-1].long()[owner]
    for take, sizes in (
        (within < cut, [min(length, cut) for length in lengths]),
        (within >= cut, [max(length - cut, 0) for length in lengths]),
    ):
        q[take] = conv_rope_cache(*part(chunked, sizes, take).arguments())
    assert_same((q, chunked.k_cache, chunked.v_cache, chunked.state), want)


def test_a_padded_row_touches_nothing() -> None:
    """Slot −1 and state row −1, as a decode step padded to the size of a captured graph has them."""
    case = make([1] * 4, plain=True)
    slots, rows = case.table.slots.clone(), case.table.state_rows.clone()
    slots[2:], rows[2:] = -1, -1
    padded = replace(case, table=replace(case.table, slots=slots, state_rows=rows))
    table = TokenTable.prefill([1, 1], case.table.positions[:2], slots[:2], rows[:2], case.table.continues[:2])
    short = replace(case, packed=case.packed[:2], table=table)
    got, want = run(conv_rope_cache, padded), run(conv_rope_cache, short)
    assert_same((got[0][:2], *got[1:]), want)


def test_registration() -> None:
    for dtype, plain in ((torch.float32, True), (torch.bfloat16, False)):
        case = make([2, 0, 3], dtype, padding=1, plain=plain)
        # opcheck compares with its own copies and does not take NaN for equal to NaN.
        finite = [x.nan_to_num(0.5) if x.is_floating_point() else x for x in case.tensors()]
        torch.library.opcheck(torch.ops.ascend_m1.conv_rope_cache.default, tuple(finite))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled(backend: str) -> None:
    """One graph, the cache written in place."""
    torch._dynamo.reset()
    function = torch.compile(conv_rope_cache, fullgraph=True, backend=backend)
    for lengths in ([1, 0, 4], [1, 1]):
        case = make(lengths, padding=1)
        assert_same(run(function, case), run(conv_rope_cache, case))


def test_a_gradient_is_refused() -> None:
    case = make([2])
    case.weight.requires_grad_()
    with pytest.raises(RuntimeError, match="no gradient"):
        conv_rope_cache(*case.arguments())
    with torch.no_grad():
        conv_rope_cache(*case.arguments())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: {"packed": c.packed[:, 1:]}, "packed must have"),
        (lambda c: {"packed": c.packed[:, : 4 * 8]}, "packed must have"),
        (lambda c: {"packed": c.packed.t().contiguous().t()}, "contiguous rows"),
        (lambda c: {"weight": c.weight[:1]}, "weight must be"),
        (lambda c: {"weight": c.weight.double()}, "weight must be torch.float32"),
        (lambda c: {"cos": c.cos[:, 1:]}, "cos must be"),
        (lambda c: {"sin": c.sin.double()}, "cos and sin must be torch.float32"),
        (lambda c: {"sin": c.sin[1:]}, "one length"),
        (lambda c: {"v_cache": c.v_cache[1:]}, "v_cache must be"),
        (lambda c: {"k_cache": c.k_cache[0]}, "k_cache must be"),
        (lambda c: {"state": c.state[:, 0]}, "state must be"),
        (lambda c: {"state": c.state.transpose(0, 1).contiguous().transpose(0, 1)}, "state must have contiguous rows"),
        (lambda c: {"table": replace(c.table, slots=c.table.slots.long())}, "slots must be int32"),
        (lambda c: {"table": replace(c.table, starts=c.table.starts[1:])}, "starts must be"),
        (lambda c: {"table": replace(c.table, cu_seqlens=c.table.cu_seqlens[1:])}, "cu_seqlens must be"),
    ],
)
def test_errors_name_the_argument(change: object, message: str) -> None:
    case = make([2, 1])
    with pytest.raises(RuntimeError, match=message):
        conv_rope_cache(*replace(case, **change(case)).arguments())  # type: ignore[operator]
