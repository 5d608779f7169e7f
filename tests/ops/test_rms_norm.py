"""RMS normalisation against its definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ascend_m1_ops import add_rms_norm, rms_norm, rms_norm_reference
from ascend_m1_ops.blocks import BLOCK_ELEMENTS
from ascend_m1_ops.testing import LOW_PRECISION, assert_rounded, compiled, gradients

pytestmark = pytest.mark.usefixtures("block_sizes")

EPS = 1e-6
SHAPES = [(8,), (1, 8), (0, 8), (2, 0, 8), (1, 1, 5120), (2, 3, 1), (BLOCK_ELEMENTS // 4096 + 1, 4096)]


def exact(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return rms_norm_reference(x.double(), weight.double(), EPS)


@pytest.mark.parametrize("dtype", [torch.float32, *LOW_PRECISION])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rounds_once(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """One rounding, and float32 arithmetic before it: 4 roundings where the output is float32 itself."""
    x, weight = (3 * torch.randn(shape)).to(dtype), torch.randn(shape[-1]).to(dtype)
    roundings = 4 if dtype == torch.float32 else 1.01
    with torch.no_grad():
        assert_rounded(rms_norm(x, weight, EPS), exact(x, weight), roundings)
    assert_rounded(rms_norm(x.requires_grad_(), weight, EPS).detach(), exact(x, weight).detach(), roundings)


@pytest.mark.parametrize("dtype", LOW_PRECISION)
def test_sum_and_norm(dtype: torch.dtype) -> None:
    x, residual, weight = torch.randn(3, 5, 64).to(dtype), torch.randn(3, 5, 64).to(dtype), torch.randn(64).to(dtype)
    normed, total = add_rms_norm(x, residual, weight, EPS)
    assert torch.equal(total, x + residual)
    assert torch.equal(normed, rms_norm(total, weight, EPS))


def test_strided_input_is_left_alone() -> None:
    wide = torch.randn(2, 600, 512)
    for x in (wide[..., 100:300], wide.transpose(0, 1), wide[:, ::2, ::2]):
        kept, weight = x.clone(), torch.randn(x.shape[-1])
        torch.testing.assert_close(rms_norm(x, weight, EPS), exact(kept, weight).float())
        assert torch.equal(x, kept)


def test_zero_rows_stay_zero_and_nan_stays_in_its_row() -> None:
    x = torch.randn(3, 16)
    x[0], x[1, 3] = 0, torch.nan
    y = rms_norm(x, torch.ones(16), EPS)
    assert torch.equal(y[0], torch.zeros(16))
    assert y[1].isnan().all()
    assert y[2].isfinite().all()


def test_gradient() -> None:
    x, weight = torch.randn(2, 3, 5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, EPS), (x.requires_grad_(), weight.requires_grad_()))
    residual = torch.randn_like(x).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, r, w: add_rms_norm(x, r, w, EPS), (x, residual, weight))


def test_gradient_of_the_weight_alone() -> None:
    """A frozen input must not choose the path without gradients."""
    x, weight = torch.randn(4, 8), torch.randn(8)
    (grad,) = gradients(lambda w: rms_norm(x, w, EPS), [weight])
    (want,) = gradients(lambda w: rms_norm_reference(x, w, EPS), [weight])
    torch.testing.assert_close(grad, want)


def test_compiled() -> None:
    x, residual, weight = torch.randn(2, 3, 64), torch.randn(2, 3, 64), torch.randn(64)
    run = compiled(lambda x, r, w: add_rms_norm(x, r, w, EPS))
    torch.testing.assert_close(run(x, residual, weight), add_rms_norm(x, residual, weight, EPS))


@given(rows=st.integers(0, 5), hidden=st.integers(1, 40), power=st.integers(-8, 8))
def test_size_of_the_input_does_not_matter(rows: int, hidden: int, power: int) -> None:
    """Scaling by a power of two changes nothing when eps is 0."""
    x, weight = torch.randn(rows, hidden) + 0.01, torch.randn(hidden)
    assert torch.equal(rms_norm(x * 2.0**power, weight, 0.0), rms_norm(x, weight, 0.0))
