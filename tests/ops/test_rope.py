"""Rotary embedding against its definition, and its definition against complex numbers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ascend_m1_ops import apply_rope, rope_reference, rope_tables
from ascend_m1_ops.testing import LOW_PRECISION, assert_rounded, compiled

pytestmark = pytest.mark.usefixtures("block_sizes")

THETA = 10_000.0


def tables(positions: torch.Tensor, head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    return rope_tables(positions, head_dim, THETA, torch.float64)


@pytest.mark.parametrize("head_dim", [2, 6, 128, 256])
def test_tables(head_dim: int) -> None:
    """float32 holds an angle to 2^-24 of its size, so cos and sin to the largest angle times that, twice."""
    positions = torch.tensor([[0, 1, 8191], [8192, 8193, 32767]])
    for got, function in zip(rope_tables(positions, head_dim, THETA), (math.cos, math.sin), strict=True):
        assert got.dtype == torch.float32
        want = [
            [[function(p * THETA ** (-2 * i / head_dim)) for i in range(head_dim // 2)] for p in row]
            for row in positions.tolist()
        ]
        torch.testing.assert_close(got.double(), torch.tensor(want, dtype=torch.float64), rtol=0, atol=32767 * 2**-23)


def test_definition_turns_complex_numbers() -> None:
    x, positions = torch.randn(2, 5, 3, 8, dtype=torch.float64), torch.randint(0, 9000, (2, 5))
    cos, sin = tables(positions, 8)
    turned = torch.complex(x[..., :4], x[..., 4:]) * torch.complex(cos, sin).unsqueeze(2)
    torch.testing.assert_close(rope_reference(x, cos, sin), torch.cat([turned.real, turned.imag], dim=-1))


@pytest.mark.parametrize("dtype", [torch.float32, *LOW_PRECISION])
@pytest.mark.parametrize(
    "shape", [(1, 1, 20, 256), (2, 0, 4, 8), (0, 3, 4, 8), (2, 65, 40, 128), (1, 3, 1, 2)], ids=str
)
def test_rounds_once(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """One rounding, and float32 arithmetic before it: a few roundings where the output is float32 itself."""
    x = torch.randn(shape).to(dtype)
    cos, sin = rope_tables(torch.randint(0, 32768, shape[:2]), shape[-1], THETA)
    exact = rope_reference(x.double(), cos.double(), sin.double())
    for out in (apply_rope(x, cos, sin), rope_reference(x, cos, sin)):
        assert out.dtype == dtype
        assert_rounded(out, exact, 1.01)


def test_strided_input_is_left_alone_and_tables_broadcast() -> None:
    packed = torch.randn(2, 70, 6 * 512 + 7)
    x = packed[..., 7:].unflatten(-1, (6, 512))[..., ::2]
    kept = x.clone()
    cos, sin = rope_tables(torch.arange(70).unsqueeze(0), 256, THETA)
    for y in (x, x.transpose(0, 1).contiguous().transpose(0, 1)):
        torch.testing.assert_close(apply_rope(y, cos, sin), rope_reference(kept, cos, sin))
    assert torch.equal(x, kept)


def test_gradient() -> None:
    x = torch.randn(2, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    cos, sin = tables(torch.randint(0, 100, (2, 3)), 4)
    assert torch.autograd.gradcheck(apply_rope, (x, cos, sin))
    with torch.no_grad():
        torch.testing.assert_close(apply_rope(x, cos, sin), rope_reference(x, cos, sin))


def test_compiled() -> None:
    x, positions = torch.randn(2, 3, 4, 8), torch.arange(6).view(2, 3)
    run = compiled(lambda x, positions: apply_rope(x, *rope_tables(positions, 8, THETA)))
    torch.testing.assert_close(run(x, positions), apply_rope(x, *rope_tables(positions, 8, THETA)))


@given(first=st.integers(0, 3000), second=st.integers(0, 3000), shift=st.integers(0, 3000))
def test_scores_depend_on_distance_alone(first: int, second: int, shift: int) -> None:
    q, k = torch.randn(1, 1, 16, dtype=torch.float64), torch.randn(1, 1, 16, dtype=torch.float64)

    def score(i: int, j: int) -> torch.Tensor:
        at = [tables(torch.tensor([p]), 16) for p in (i, j)]
        return (apply_rope(q, *at[0]) * apply_rope(k, *at[1])).sum()

    torch.testing.assert_close(score(first, second), score(first + shift, second + shift), rtol=1e-9, atol=1e-9)


@given(position=st.integers(0, 32767), heads=st.integers(1, 3))
def test_length_is_kept(position: int, heads: int) -> None:
    x = torch.randn(1, heads, 32)
    out = apply_rope(x, *rope_tables(torch.tensor([position]), 32, THETA))
    torch.testing.assert_close(out.norm(dim=-1), x.norm(dim=-1))
