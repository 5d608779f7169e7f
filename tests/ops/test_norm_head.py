"""NormHead and its loss against normalised rows and plain cross entropy."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ascend_m1_ops import inverse_row_norm, norm_head, norm_head_loss, norm_head_reference
from ascend_m1_ops.blocks import BLOCK_ELEMENTS
from ascend_m1_ops.testing import LOW_PRECISION, compiled, gradients, rounding

pytestmark = pytest.mark.usefixtures("block_sizes")


def logits_of(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return norm_head(x, weight, inverse_row_norm(weight))


def loss_of(x: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, chunk: int) -> torch.Tensor:
    return norm_head_loss(x, weight, inverse_row_norm(weight), labels, chunk=chunk)


def plain_loss(x: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(norm_head_reference(x, weight), labels, reduction="sum")


@pytest.mark.parametrize("dtype", [torch.float32, *LOW_PRECISION])
@pytest.mark.parametrize("shape", [(16,), (1, 1, 16), (0, 16), (2, 0, 16), (3, 5, 16)], ids=str)
def test_logits(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """The product is rounded, then the scaling: 2 roundings, and the product's float32 sum, at the size of x."""
    x, weight = torch.randn(shape).to(dtype), torch.randn(50, 16).to(dtype)
    exact = norm_head_reference(x.double(), weight.double())
    got = logits_of(x, weight)
    assert got.dtype == dtype
    atol = 16 * torch.finfo(torch.float32).eps * x.double().norm(dim=-1).max().item() if x.numel() else 0.0
    torch.testing.assert_close(got.double(), exact, rtol=2.02 * rounding(dtype), atol=atol)
    assert torch.equal(logits_of(x, weight.requires_grad_()).detach(), got)


@pytest.mark.parametrize("dtype", LOW_PRECISION)
def test_logits_in_several_blocks(dtype: torch.dtype) -> None:
    vocab = 4100  # more rows than one slice of inverse_row_norm
    x, weight = torch.randn(BLOCK_ELEMENTS // vocab + 2, 8).to(dtype), torch.randn(vocab, 8).to(dtype)
    exact = norm_head_reference(x.double(), weight.double())
    torch.testing.assert_close(logits_of(x, weight).double(), exact, rtol=2.02 * rounding(dtype), atol=1e-5)


def test_a_zero_row_gives_zero_logits() -> None:
    weight = torch.randn(5, 8)
    weight[2] = 0
    assert torch.equal(logits_of(torch.randn(3, 8), weight)[:, 2], torch.zeros(3))


def test_gradient() -> None:
    x, weight = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    leaves = (x.requires_grad_(), weight.requires_grad_())
    assert torch.autograd.gradcheck(logits_of, leaves)
    labels = torch.tensor([0, 5, -100, 3, 3, 1])
    assert torch.autograd.gradcheck(lambda x, w: loss_of(x.flatten(0, 1), w, labels, chunk=4), leaves)


@given(tokens=st.integers(1, 9), chunk=st.integers(1, 10), ignored=st.integers(0, 9))
def test_loss_and_gradients_are_those_of_cross_entropy(tokens: int, chunk: int, ignored: int) -> None:
    x, weight = torch.randn(tokens, 8, dtype=torch.float64), torch.randn(11, 8, dtype=torch.float64)
    labels = torch.randint(0, 11, (tokens,))
    labels[torch.randperm(tokens)[:ignored]] = -100
    torch.testing.assert_close(loss_of(x, weight, labels, chunk), plain_loss(x, weight, labels))
    got = gradients(lambda x, w: loss_of(x, w, labels, chunk), [x, weight])
    torch.testing.assert_close(got, gradients(lambda x, w: plain_loss(x, w, labels), [x, weight]))


@pytest.mark.parametrize("tokens", [0, 3])
def test_nothing_to_predict_is_zero_with_zero_gradients(tokens: int) -> None:
    x, weight = torch.randn(tokens, 8), torch.randn(5, 8)
    labels = torch.full((tokens,), -100)
    assert loss_of(x, weight, labels, 2).item() == 0
    assert all(grad.count_nonzero() == 0 for grad in gradients(lambda x, w: loss_of(x, w, labels, 2), [x, weight]))


@pytest.mark.parametrize("dtype", LOW_PRECISION)
def test_low_precision_loss_is_float32(dtype: torch.dtype) -> None:
    """Logits are rounded once (by the product), so each token's loss is off by at most two roundings of a logit."""
    x, weight, labels = torch.randn(7, 64).to(dtype), torch.randn(30, 64).to(dtype), torch.randint(0, 30, (7,))
    loss = loss_of(x, weight, labels, 4)
    assert loss.dtype == torch.float32
    exact = plain_loss(x.double(), weight.double(), labels)
    largest = norm_head_reference(x.double(), weight.double()).abs().max().item()
    assert abs(loss.item() - exact.item()) <= 7 * 2 * rounding(dtype) * largest


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any result had."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.elements = max(self.elements, leaf.numel())
        return result


@pytest.mark.parametrize("chunk", [1, 4, 32])
def test_logits_exist_for_one_chunk_only(chunk: int) -> None:
    """Forward and backward; without chunks the same instrument sees all 32 rows."""
    x, weight, labels = torch.randn(32, 2), torch.randn(100, 2), torch.randint(0, 100, (32,))
    with LargestTensor() as largest:
        gradients(lambda x, w: loss_of(x, w, labels, chunk), [x, weight])
    assert largest.elements == max(chunk, 2) * 100  # the weight itself has 2 columns


def test_compiled() -> None:
    x, weight, labels = torch.randn(5, 8), torch.randn(11, 8), torch.tensor([1, -100, 3, 10, -100])
    torch.testing.assert_close(compiled(logits_of)(x, weight), logits_of(x, weight))
    run = compiled(lambda x, w, labels: loss_of(x, w, labels, 2))
    torch.testing.assert_close(run(x, weight, labels), loss_of(x, weight, labels, 2))
