"""Losses over class probabilities and their derivatives."""

from __future__ import annotations

import torch
from torch import Tensor

from ..operator import aclnn, need

_NLL = "ops-nn loss/nll_loss/docs/aclnnNLLLoss.md"
_NLL_GRAD = "ops-nn loss/nll_loss_grad/docs/aclnnNLLLossBackward.md"
_NONE, _MEAN = 0, 1


def _check_targets(x: Tensor, target: Tensor, ignore: int, page: str) -> Tensor:
    """True for rows that count.

    Raises:
        RuleError: a row that counts names no class.
    """
    kept = target != ignore
    inside = ((target >= 0) & (target < x.shape[-1])) | ~kept
    need(bool(inside.all()), "target", f"lies in [0, {x.shape[-1]}) or is ignored", page)
    return kept


def _nll_rules(x: Tensor, target: Tensor, weight: Tensor, *rest: object) -> None:
    need(x.dim() in (1, 2), "self", f"is [N, C] or [C], got {list(x.shape)}", _NLL)
    need(
        target.dtype in (torch.int64, torch.int32, torch.uint8),
        "target",
        f"is int64, int32 or uint8, got {target.dtype}",
        _NLL,
    )
    need(list(weight.shape) == [x.shape[-1]], "weight", f"is [{x.shape[-1]}], got {list(weight.shape)}", _NLL)


def _weights(x: Tensor, target: Tensor, weight: Tensor, ignore: int, page: str) -> tuple[Tensor, Tensor]:
    """Rows' classes, with 0 where ignored, and their weights in float32, with 0 where ignored."""
    target = target.reshape(-1).long()
    kept = _check_targets(x, target, ignore, page)
    classes = target.where(kept, 0)
    return classes, weight.float()[classes] * kept


@aclnn(
    "NLLLoss",
    "T self, T target, T weight, i64 reduction, i64 ignoreIndex, T! out, T! totalWeight",
    rules=_nll_rules,
)
def nll_loss(
    x: Tensor, target: Tensor, weight: Tensor, reduction: int, ignore: int, out: Tensor, total: Tensor
) -> None:
    rows = x.reshape(-1, x.shape[-1])
    classes, factors = _weights(x, target, weight, ignore, _NLL)
    losses = -rows.float().gather(1, classes[:, None])[:, 0].where(factors != 0, 0) * factors
    total.copy_(factors.sum())
    result = losses if reduction == _NONE else losses.sum() / (factors.sum() if reduction == _MEAN else 1)
    out.copy_(result.view_as(out))


@aclnn(
    "NLLLossBackward",
    "T gradOutput, T self, T target, T weight, i64 reduction, i64 ignoreIndex, T totalWeight, T! out",
)
def nll_loss_backward(
    grad: Tensor, x: Tensor, target: Tensor, weight: Tensor, reduction: int, ignore: int, total: Tensor, out: Tensor
) -> None:
    classes, factors = _weights(x, target, weight, ignore, _NLL_GRAD)
    scale = grad.float() / total.float() if reduction == _MEAN else grad.float()
    values = (-factors * scale.reshape(-1)).to(out.dtype)
    out.zero_()
    out.view(-1, x.shape[-1]).scatter_(1, classes[:, None], values[:, None])


_REDUCTIONS = {0: "none", 1: "mean", 2: "sum"}


@aclnn("MseLoss", "T self, T target, i64 reduction, T! out")
def mse_loss(x: Tensor, target: Tensor, reduction: int, out: Tensor) -> None:
    out.copy_(torch.nn.functional.mse_loss(x, target, reduction=_REDUCTIONS[reduction]))


@aclnn("MseLossBackward", "T gradOutput, T self, T target, i64 reduction, T! out")
def mse_loss_backward(grad: Tensor, x: Tensor, target: Tensor, reduction: int, out: Tensor) -> None:
    out.copy_(2 * (x - target) * grad / (x.numel() if reduction == _MEAN else 1))
