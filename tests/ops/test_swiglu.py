"""SwiGLU against its definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ascend_m1_ops import swiglu, swiglu_reference
from ascend_m1_ops.testing import LOW_PRECISION, assert_rounded, compiled, gradients


@pytest.mark.parametrize("dtype", [torch.float32, *LOW_PRECISION])
@pytest.mark.parametrize("shape", [(7,), (1, 1), (0, 7), (2, 0, 7), (1, 17408), (17, 8192)], ids=str)
def test_rounds_twice(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """The activation is rounded, then the product: 2 roundings, and the exponential's own in float32."""
    gate, up = (4 * torch.randn(shape)).to(dtype), torch.randn(shape).to(dtype)
    exact = swiglu_reference(gate.double(), up.double())
    inference = swiglu(gate, up)
    assert_rounded(inference, exact, 8 if dtype == torch.float32 else 2.02)
    assert torch.equal(swiglu(gate.requires_grad_(), up).detach(), inference)


def test_far_gates() -> None:
    gate = torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4])
    want = torch.tensor([0.0, 0.0, 0.0, 200.0, 2e4])
    torch.testing.assert_close(swiglu(gate, torch.full((5,), 2.0)), want, rtol=0, atol=1e-30)


def test_strided_inputs_are_left_alone() -> None:
    both = torch.randn(3, 700, 2 * 128)
    gate, up = both.chunk(2, dim=-1)
    kept = both.clone()
    torch.testing.assert_close(swiglu(gate, up), swiglu_reference(gate, up))
    torch.testing.assert_close(
        swiglu(gate.transpose(0, 1), up.transpose(0, 1)), swiglu_reference(gate, up).transpose(0, 1)
    )
    assert torch.equal(both, kept)


def test_gradient() -> None:
    gate, up = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(swiglu, (gate, up))
    assert torch.autograd.gradcheck(swiglu_reference, (gate, up))


def test_gradient_of_one_input_alone() -> None:
    """A frozen input must not choose the path without gradients."""
    gate, up = torch.randn(4, 8), torch.randn(4, 8)
    torch.testing.assert_close(gradients(lambda u: swiglu(gate, u), [up]), gradients(swiglu, [gate, up])[1:])
    torch.testing.assert_close(gradients(lambda g: swiglu(g, up), [gate]), gradients(swiglu, [gate, up])[:1])


def test_compiled() -> None:
    gate, up = torch.randn(2, 3, 64), torch.randn(2, 3, 64)
    torch.testing.assert_close(compiled(swiglu)(gate, up), swiglu(gate, up))


@given(rows=st.integers(0, 4), columns=st.integers(1, 20))
def test_linear_in_up(rows: int, columns: int) -> None:
    gate, up = torch.randn(rows, columns), torch.randn(rows, columns)
    assert torch.equal(swiglu(gate, 2 * up), 2 * swiglu(gate, up))
