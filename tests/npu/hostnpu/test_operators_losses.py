"""Cross entropy and its family over shards of the vocabulary equal their pages' formulas; merging partial attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch_npu
from hypothesis import given, settings
from hypothesis import strategies as st

from . import definitions
from .checks import assert_refused, assert_rounded, half, ints

SUM = "aclnnFusedLinearOnlineMaxSum"


@settings(max_examples=20, deadline=None)
@given(
    reduction=st.sampled_from(("none", "mean", "sum")),
    smoothing=st.sampled_from((0.0, 0.1)),
    weighted=st.booleans(),
    ignore=st.sampled_from((-100, 2)),
    dtype=st.sampled_from((torch.float32, torch.bfloat16)),
)
def test_cross_entropy_loss(reduction: str, smoothing: float, weighted: bool, ignore: int, dtype: torch.dtype) -> None:
    x, target = torch.randn(5, 4).to(dtype), torch.tensor([0, 2, 3, 1, 2])
    weight = torch.rand(4) + 0.5 if weighted else None
    device, exact = x.npu().requires_grad_(), x.double().requires_grad_()
    loss, log_prob, *_ = torch_npu.npu_cross_entropy_loss(
        device,
        target.npu(),
        weight=None if weight is None else weight.npu(),
        reduction=reduction,
        ignore_index=ignore,
        label_smoothing=smoothing,
    )
    logs = exact - exact.exp().sum(-1, keepdim=True).log()
    each = torch.ones(4) if weight is None else weight
    rows, kept = [], [t for t in target.tolist() if t != ignore]
    for row, t in zip(logs, target.tolist(), strict=True):
        one = (1 - smoothing) * -row[t] * each[t] + smoothing / 4 * (-row * each).sum()
        rows.append(one if t != ignore else one * 0)
    lost = torch.stack(rows)
    want = {"none": lost, "sum": lost.sum(), "mean": lost.sum() / sum(each[t] for t in kept)}[reduction]
    assert_rounded(log_prob.detach(), logs.detach())
    assert_rounded(loss.detach(), want.detach().view(loss.shape))
    loss.sum().backward()
    want.sum().backward()
    assert_rounded(device.grad, exact.grad, 4)  # goes through the rounded log probabilities


def shard(**changes: Any) -> tuple[torch.Tensor, ...]:
    given = {"x": half(3, 16), "weight": half(128, 16), "target": ints(0, 1, 2), "first": 0, "last": 127} | changes
    return torch_npu.npu_fused_linear_online_max_sum(*given.values())


@settings(max_examples=10, deadline=None)
@given(rows=st.integers(1, 17), shards=st.sampled_from((1, 2)), logits=st.booleans())
def test_vocabulary_in_shards_equals_cross_entropy(rows: int, shards: int, logits: bool) -> None:
    """Max, sum and prediction of each shard by the page; merged they give the whole's loss and derivatives."""
    size, dim = 128, 16
    x, weight = (torch.randn(n, dim).mul(0.5).bfloat16() for n in (rows, shards * size))
    target, grad = torch.randint(0, shards * size, (rows,)), torch.rand(rows)
    parts = []
    for k in range(shards):
        first, piece = k * size, weight[k * size : (k + 1) * size]
        got = torch_npu.npu_fused_linear_online_max_sum(
            x.npu(), piece.npu(), target.npu(), first, first + size - 1, return_logits=logits
        )
        want = definitions.vocabulary_shard(x, piece, target, first, first + size - 1)
        for tensor, name in zip(got[:3], ("maximum", "sum", "predicted"), strict=True):
            assert_rounded(tensor, want[name])
        assert got[3].cpu().tolist() == want["mask"].tolist()
        assert got[4].cpu().tolist() == want["target"].tolist()
        parts.append((piece, got))
    maximum = torch.stack([g[0] for _, g in parts]).amax(0)
    total = sum(g[1] * (g[0] - maximum).exp() for _, g in parts)
    inside = [((g[3].cpu().long()[:, None] >> torch.arange(7, -1, -1)) & 1).flatten()[:rows] == 0 for _, g in parts]
    predicted = sum((g[2] + g[0] - maximum) * i.npu() for (_, g), i in zip(parts, inside, strict=True))

    exact_x, exact_w = x.double().requires_grad_(), weight.double().requires_grad_()
    lost = torch.nn.functional.cross_entropy(exact_x @ exact_w.T, target, reduction="none")
    lost.backward(grad.double())
    dx = torch.zeros(rows, dim, dtype=torch.float64)
    for k, (piece, got) in enumerate(parts):
        loss, softmax = torch_npu.npu_fused_cross_entropy_loss_with_max_sum(
            maximum, total, predicted, vocab_parallel_logits=got[5] if logits else None
        )
        torch.testing.assert_close(loss.cpu().double(), lost.detach(), rtol=1e-5, atol=1e-5)
        by_x, by_weight = torch_npu.npu_fused_linear_cross_entropy_loss_with_max_sum_backward(
            grad.npu(), x.npu(), piece.npu(), got[3], got[4], 0.0, maximum, total, softmax if logits else None
        )
        dx += by_x.cpu().double()
        loose = {"rtol": 2**-6, "atol": 2**-6}  # logits, where asked for, are rounded to bfloat16
        torch.testing.assert_close(by_weight.cpu().double(), exact_w.grad[k * size : (k + 1) * size], **loose)
    torch.testing.assert_close(dx, exact_x.grad, rtol=2**-5, atol=2**-5)


REFUSED = {
    "a negative ignore_index ignores nothing": (
        "aclnnCrossEntropyLoss",
        "target",
        "npu_cross_entropy_loss.md",
        lambda: torch_npu.npu_cross_entropy_loss(half(2, 4), ints(0, -100, dtype=torch.int64)),
    ),
    "target beyond the classes": (
        "aclnnCrossEntropyLoss",
        "target",
        "npu_cross_entropy_loss.md",
        lambda: torch_npu.npu_cross_entropy_loss(half(2, 4), ints(0, 4, dtype=torch.int64)),
    ),
    "shard longer than its rows": (SUM, "vocabEndIndex", f"{SUM}.md", lambda: shard(last=128)),
    "shard in float32": (SUM, "input", f"{SUM}.md", lambda: shard(x=half(3, 16).float(), weight=half(128, 16).float())),
    "fewer than 128 rows": (
        "aclnnFusedLinearCrossEntropyLossGrad",
        "weight",
        "aclnnFusedLinearCrossEntropyLossGrad.md",
        lambda: torch_npu.npu_fused_linear_cross_entropy_loss_with_max_sum_backward(
            half(8).float(),
            half(8, 16),
            half(127, 16),
            half(1).byte(),
            half(8).int(),
            0.0,
            half(8).float(),
            half(8).float(),
        ),
    ),
    "label smoothing": (
        "aclnnFusedCrossEntropyLossWithMaxSum",
        "labelSmoothing",
        "aclnnFusedCrossEntropyLossWithMaxSum.md",
        lambda: torch_npu.npu_fused_cross_entropy_loss_with_max_sum(
            half(2).float(), half(2).float(), half(2).float(), label_smoothing=0.1
        ),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    assert_refused(*REFUSED[name])


def test_merged_parts_equal_attention_over_all_keys() -> None:
    query, key, value = torch.randn(3, 2, 8), torch.randn(10, 2, 8), torch.randn(10, 2, 8)
    whole, lse = definitions.attention(query, key, value, 0.3, definitions.everything)
    parts = [
        definitions.attention(query, key[s], value[s], 0.3, definitions.everything) for s in (slice(4), slice(4, 10))
    ]
    out, merged = torch_npu.npu_attention_update(
        [p[1].float().flatten().npu() for p in parts], [p[0].float().view(-1, 8).npu() for p in parts], 1
    )
    assert_rounded(out, whole.view(-1, 8))
    assert_rounded(merged, lse.flatten())
