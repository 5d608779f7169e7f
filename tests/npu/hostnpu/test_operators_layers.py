"""Normalisation, rotary embedding, SwiGLU, loss and AdamW equal their pages' formulas, forwards and backwards."""

from __future__ import annotations

import pytest
import torch
import torch_npu
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from . import definitions
from .checks import assert_rounded

HALF_OR_SINGLE = st.sampled_from((torch.float16, torch.bfloat16, torch.float32))
EPSILON = 1e-5


@settings(max_examples=15, deadline=None)
@given(
    lead=st.lists(st.integers(1, 4), min_size=0, max_size=2),
    trail=st.sampled_from(((8,), (3, 8), (1,))),
    dtype=HALF_OR_SINGLE,
    wide_gamma=st.booleans(),
)
def test_rms_norm_and_its_derivative(
    lead: list[int], trail: tuple[int, ...], dtype: torch.dtype, wide_gamma: bool
) -> None:
    shape = (*lead, *trail)
    x, grad = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    gamma = torch.randn(trail).to(torch.float32 if wide_gamma else dtype)
    device_x, device_gamma = x.npu().requires_grad_(), gamma.npu().requires_grad_()
    y, rstd = torch_npu.npu_rms_norm(device_x, device_gamma, EPSILON)
    y.backward(grad.npu())
    exact_x, exact_gamma = x.double().requires_grad_(), gamma.double().requires_grad_()
    want, want_rstd = definitions.rms_norm(exact_x, exact_gamma, EPSILON)
    want.backward(grad.double())
    assert_rounded(y, want.detach())
    assert_rounded(rstd, want_rstd.detach().view(rstd.shape))
    assert_rounded(device_x.grad, exact_x.grad)
    assert_rounded(device_gamma.grad, exact_gamma.grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_add_rms_norm_normalises_the_rounded_sum(dtype: torch.dtype) -> None:
    x1, x2, gamma = torch.randn(3, 8).to(dtype), torch.randn(3, 8).to(dtype), torch.randn(8).to(dtype)
    y, rstd, x = torch_npu.npu_add_rms_norm(x1.npu(), x2.npu(), gamma.npu(), EPSILON)
    assert_rounded(x, x1.double() + x2.double())
    want, want_rstd = definitions.rms_norm(x.cpu(), gamma, EPSILON)
    assert_rounded(y, want)
    assert_rounded(rstd, want_rstd)


def tables(x: Tensor, shape: list[int]) -> tuple[Tensor, Tensor]:
    angles = torch.rand(shape) * 6
    return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


@settings(max_examples=20, deadline=None)
@given(
    shape=st.sampled_from(((5, 3, 16), (2, 4, 3, 16), (1, 1, 1, 2))),
    kept=st.sampled_from(("rows", "batch and rows", "all")),
    dtype=HALF_OR_SINGLE,
    mode=st.sampled_from(("half", "interleave")),
)
def test_rotary_and_its_derivative(shape: tuple[int, ...], kept: str, dtype: torch.dtype, mode: str) -> None:
    """TND with [T, 1, D] or [T, N, D]; BSND with [1, S, 1, D], [B, S, 1, D] or [B, S, N, D]."""
    if mode == "interleave":
        kept = "rows"
    table = list(shape)
    if kept != "all":
        table[-2] = 1
    if kept == "rows" and len(shape) == 4:
        table[0] = 1
    x = torch.randn(shape).to(dtype)
    cos, sin = tables(x, table)
    on_device, grad = x.npu().requires_grad_(), torch.randn(shape).to(dtype)
    got = torch_npu.npu_rotary_mul(on_device, cos.npu(), sin.npu(), mode)
    got.backward(grad.npu())
    exact = x.double().requires_grad_()
    want = definitions.rotary(exact, cos, sin, mode)
    want.backward(grad.double())
    assert_rounded(got, want.detach())
    assert_rounded(on_device.grad, exact.grad)


def test_rotary_derivative_by_the_tables() -> None:
    x = torch.randn(2, 3, 4, 8)
    cos, sin = (t.npu().requires_grad_() for t in tables(x, [1, 3, 1, 8]))
    exact = [t.detach().cpu().double().requires_grad_() for t in (cos, sin)]
    torch_npu.npu_rotary_mul(x.npu(), cos, sin).sum().backward()
    definitions.rotary(x, *exact, "half").sum().backward()
    assert_rounded(cos.grad, exact[0].grad)
    assert_rounded(sin.grad, exact[1].grad)


@pytest.mark.parametrize("layout", ["BSND", "TND"])
def test_apply_rotary_changes_query_and_key_in_place(layout: str) -> None:
    lead = (2, 3) if layout == "BSND" else (5,)
    query, key = torch.randn(*lead, 4, 128).bfloat16(), torch.randn(*lead, 2, 128).bfloat16()
    cos, sin = tables(query, [*lead, 1, 128])
    on_device = query.npu(), key.npu()
    torch_npu.npu_apply_rotary_pos_emb(*on_device, cos.npu(), sin.npu(), layout)
    for got, x in zip(on_device, (query, key), strict=True):
        assert_rounded(got, definitions.rotary(x, cos, sin, "half"))


@settings(max_examples=15, deadline=None)
@given(
    case=st.sampled_from((((4, 6), -1), ((2, 3, 8), -1), ((2, 4, 3), 1), ((2, 3, 5), -3), ((0, 4), 1))),
    dtype=HALF_OR_SINGLE,
)
def test_swiglu_and_its_derivative(case: tuple[tuple[int, ...], int], dtype: torch.dtype) -> None:
    shape, dim = case
    x = torch.randn(shape).to(dtype)
    on_device, exact = x.npu().requires_grad_(), x.double().requires_grad_()
    got, want = torch_npu.npu_swiglu(on_device, dim), definitions.swiglu(exact, dim)
    grad = torch.randn(want.shape).to(dtype)
    got.backward(grad.npu())
    want.backward(grad.double())
    assert_rounded(got, want.detach())
    assert_rounded(on_device.grad, exact.grad)


@settings(max_examples=15, deadline=None)
@given(dtype=HALF_OR_SINGLE, maximize=st.booleans(), amsgrad=st.booleans(), decay=st.sampled_from((0.0, 0.1)))
def test_fused_adamw_takes_the_page_s_step(dtype: torch.dtype, maximize: bool, amsgrad: bool, decay: float) -> None:
    weight = torch.nn.Parameter(torch.randn(3, 5).to(dtype).npu())
    optimizer = torch.optim.AdamW(
        [weight], lr=0.01, betas=(0.9, 0.95), weight_decay=decay, fused=True, maximize=maximize, amsgrad=amsgrad
    )
    m = v = largest = torch.zeros(3, 5, dtype=torch.float64)
    for step in range(1, 4):
        grad, before = torch.randn(3, 5).to(dtype), weight.detach().cpu()
        weight.grad = grad.npu()
        optimizer.step()
        signed = -grad if maximize else grad
        want, m, v = definitions.adamw(before, m, v, signed, step, 0.01, (0.9, 0.95), decay, 1e-8)
        if amsgrad:
            largest = torch.maximum(largest, v)
            second = (largest / (1 - 0.95**step)).sqrt() + 1e-8
            want = before.double() * (1 - 0.01 * decay) - 0.01 * m / (1 - 0.9**step) / second
        assert_rounded(weight.detach(), want)
        state = optimizer.state[weight]
        assert_rounded(state["exp_avg"], m)
        assert_rounded(state["exp_avg_sq"], v)
        m, v = state["exp_avg"].cpu().double(), state["exp_avg_sq"].cpu().double()
        largest = state["max_exp_avg_sq"].cpu().double() if amsgrad else largest


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("ignored", [0, 2])
def test_nll_loss_skips_ignored_rows(reduction: str, ignored: int) -> None:
    logits = torch.randn(6, 5)
    target = torch.tensor([0, 4, 1, 3, 2, 2])
    target[:ignored] = -100
    device, exact = logits.npu().requires_grad_(), logits.double().requires_grad_()
    got = torch.nn.functional.cross_entropy(device, target.npu(), reduction=reduction)
    rows = definitions.nll(exact.log_softmax(-1), target, -100)
    want = {"none": rows, "mean": rows.mean(), "sum": rows.sum()}[reduction]
    shown = got[ignored:] if reduction == "none" else got
    assert_rounded(shown.detach(), want.detach())
    assert reduction != "none" or not got[:ignored].any()
    shown.sum().backward()
    want.sum().backward()
    assert_rounded(device.grad, exact.grad)
