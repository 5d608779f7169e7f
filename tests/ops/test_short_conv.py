"""The short convolution against its definition, one sequence after the other."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ascend_m1_ops import short_conv, short_conv_reference, short_conv_step
from ascend_m1_ops.short_conv import kernels
from ascend_m1_ops.testing import LOW_PRECISION, assert_rounded, compiled, gradients

pytestmark = pytest.mark.usefixtures("block_sizes")

LENGTHS = [[1], [5], [0], [], [0, 3, 0, 0, 1, 2, 0], [63, 1, 64, 1], [64], [65], [129, 0, 130]]


def make(
    lengths: list[int], dtype: torch.dtype = torch.float32, heads: int = 2, head_dim: int = 3
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """kv (a slice of a wider projection), taps, state, cu_seqlens."""
    packed = torch.randn(sum(lengths), 4 + 2 * heads * head_dim).to(dtype)
    kv = packed[:, 4:].unflatten(1, (2, heads, head_dim))
    weight = torch.randn(2, heads, 2).softmax(-1).to(dtype)
    state = torch.randn(len(lengths), 2, heads, head_dim).to(dtype)
    return kv, weight, state, torch.tensor([0, *itertools.accumulate(lengths)])


@pytest.mark.parametrize("dtype", [torch.float32, *LOW_PRECISION])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_rounds_once(lengths: list[int], dtype: torch.dtype) -> None:
    """float32 arithmetic, one rounding; the state is a copy of what was there."""
    kv, weight, state, borders = make(lengths, dtype)
    out, after = short_conv(kv, weight, state, borders.int())
    want, want_after = short_conv_reference(kv.double(), weight.double(), state.double(), borders)
    assert out.dtype == after.dtype == dtype
    assert_rounded(out, want, 2 if dtype == torch.float32 else 1.01)
    assert torch.equal(after.double(), want_after)


def test_inputs_are_left_alone_and_state_is_no_view() -> None:
    inputs = make([2, 0, 3])
    kept = [tensor.clone() for tensor in inputs]
    _, after = short_conv(*inputs)
    after.fill_(7)
    assert all(torch.equal(a, b) for a, b in zip(inputs, kept, strict=True))


def test_nan_does_not_cross_a_border() -> None:
    kv, weight, state, borders = make([3, 3])
    kv[2], state[0] = torch.nan, torch.nan
    out, after = short_conv(kv, weight, state, borders)
    assert out[[0, 2]].isnan().all()
    assert out[3:].isfinite().all()
    assert after[1].isfinite().all()


@given(lengths=st.lists(st.integers(0, 9), max_size=5), cut=st.integers(0, 9))
def test_chunks_equal_the_whole(lengths: list[int], cut: int) -> None:
    """Any split of every sequence into two chunks gives the same numbers: the state carries all there is to know."""
    kv, weight, state, borders = make(lengths, torch.float64)
    want, want_state = short_conv(kv, weight, state, borders)
    sequences = [kv[a:b] for a, b in itertools.pairwise(borders.tolist())]
    outputs = []
    for part in ([x[:cut] for x in sequences], [x[cut:] for x in sequences]):
        marks = torch.tensor([0, *itertools.accumulate(len(x) for x in part)])
        out, state = short_conv(torch.cat([kv[:0], *part]), weight, state, marks)
        outputs.append(out.split([len(x) for x in part]))
    joined = torch.cat([kv[:0], *(torch.cat(pair) for pair in zip(*outputs, strict=True))])
    torch.testing.assert_close(joined, want, rtol=1e-15, atol=1e-15)
    assert torch.equal(state, want_state)


@pytest.mark.parametrize("dtype", [torch.float32, *LOW_PRECISION])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_one_pass_rounds_once(lengths: list[int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows without gaps through the depthwise convolution, which real prompts are long enough for."""
    monkeypatch.setattr(kernels, "_ONE_PASS_ELEMENTS", 1)
    kv, weight, state, borders = make(lengths, dtype)
    out, after = short_conv(kv.contiguous(), weight, state, borders)
    want, want_after = short_conv_reference(kv.double(), weight.double(), state.double(), borders)
    assert_rounded(out, want, 2 if dtype == torch.float32 else 1.01)
    assert torch.equal(after.double(), want_after)


def test_one_pass_keeps_nan_within_its_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    """No row but the next sees it: a filter that multiplied it by zero would spread it."""
    monkeypatch.setattr(kernels, "_ONE_PASS_ELEMENTS", 1)
    kv, weight, state, borders = make([40, 40], torch.bfloat16, 2, 64)
    kv[[10, 39]] = torch.nan
    out, _ = short_conv(kv.contiguous(), weight, state, borders)
    assert out.isnan().any(-1).any(-1).any(-1).nonzero().flatten().tolist() == [10, 11, 39]


@pytest.mark.parametrize("dtype", [torch.float32, *LOW_PRECISION])
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_step_is_a_sequence_of_one(batch: int, dtype: torch.dtype) -> None:
    kv, weight, state, borders = make([1] * batch, dtype)
    out, after = short_conv_step(kv, weight, state)
    want, want_after = short_conv(kv, weight, state, borders)
    assert torch.equal(out, want)
    assert torch.equal(after, want_after)


@pytest.mark.parametrize("lengths", [[3], [1, 0, 4], [0]], ids=str)
def test_gradient(lengths: list[int]) -> None:
    kv, weight, state, borders = make(lengths, torch.float64)
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (kv, weight, state)]
    assert torch.autograd.gradcheck(lambda *x: short_conv(*x, borders), leaves)
    assert torch.autograd.gradcheck(lambda *x: short_conv_reference(*x, borders), leaves)


def test_gradient_of_a_step() -> None:
    kv, weight, state, _ = make([1, 1], torch.float64)
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (kv, weight, state)]
    assert torch.autograd.gradcheck(short_conv_step, leaves)


@pytest.mark.parametrize("dtype", LOW_PRECISION)
def test_low_precision_gradient_rounds_once(dtype: torch.dtype) -> None:
    """Sums are float32; each gradient is rounded once, where one tap reaches it from two sides as well."""
    kv, weight, state, borders = make([5, 0, 3], dtype)
    got = gradients(lambda *x: short_conv(*x, borders), [kv, weight, state])
    want = gradients(lambda *x: short_conv_reference(*x, borders), [kv.double(), weight.double(), state.double()])
    for grad, exact in zip(got, want, strict=True):
        assert grad.dtype == dtype
        # What flows in (the gradient of the output) is rounded as well, at the size of the largest element.
        scale = exact.abs().max().item()
        torch.testing.assert_close(grad.double(), exact, rtol=0, atol=4 * torch.finfo(dtype).eps * scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_registration(dtype: torch.dtype) -> None:
    kv, weight, state, borders = make([1, 0, 4], dtype)
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (kv, weight, state)]
    torch.library.opcheck(torch.ops.ascend_m1.short_conv.default, (*leaves, borders))
    torch.library.opcheck(torch.ops.ascend_m1.short_conv.default, (kv, weight, state, borders))
    gradients = (torch.randn_like(kv), torch.randn_like(state))
    backward = torch.ops.ascend_m1.short_conv_backward.default
    torch.library.opcheck(backward, (*gradients, kv, weight, state, borders))


def test_compiled() -> None:
    inputs = make([1, 0, 4])
    torch.testing.assert_close(compiled(short_conv)(*inputs), short_conv(*inputs))
    kv, weight, state, _ = make([1, 1])
    torch.testing.assert_close(compiled(short_conv_step)(kv, weight, state), short_conv_step(kv, weight, state))


def test_compiled_gradient() -> None:
    *inputs, borders = make([1, 0, 4])
    run = compiled(lambda *x: short_conv(*x, borders))
    torch.testing.assert_close(gradients(run, inputs), gradients(lambda *x: short_conv(*x, borders), inputs))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda kv, w, s, b: (kv[:, :1], w, s, b), "kv must be"),
        (lambda kv, w, s, b: (kv, w[:, :1], s, b), "weight must be"),
        (lambda kv, w, s, b: (kv, w, s[1:], b), "state must be"),
        (lambda kv, w, s, b: (kv, w, s, b[None]), "cu_seqlens must be"),
        (lambda kv, w, s, b: (kv, w, s, b.float()), "int32 or int64"),
        (lambda kv, w, s, b: (kv, w.double(), s, b), "share a dtype"),
    ],
)
def test_errors_name_the_argument(change: object, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        short_conv(*change(*make([2, 1])))  # type: ignore[operator]
