"""Cross entropy from logits, and the family that never builds the logits of a whole vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

from ..operator import aclnn, need
from ..products import product

_LOSS = "ops-nn loss/cross_entropy_loss/docs/aclnnCrossEntropyLoss.md"
_LOSS_OP = "op-plugin torch_npu-npu_cross_entropy_loss.md"
_SUM = "ops-nn matmul/fused_linear_online_max_sum/docs/aclnnFusedLinearOnlineMaxSum.md"
_FUSED = "ops-nn loss/fused_cross_entropy_loss_with_max_sum/docs/aclnnFusedCrossEntropyLossWithMaxSum.md"
_GRAD = "ops-nn matmul/fused_linear_cross_entropy_loss_grad/docs/aclnnFusedLinearCrossEntropyLossGrad.md"
_HALF = (torch.float16, torch.bfloat16)


def _rules(
    x: Tensor, target: Tensor, weight: Tensor | None, reduction: str, ignore: int, smoothing: float, z: float,
    want_z: bool, *outputs: Tensor,
) -> None:  # fmt: skip
    need(product() != "310P", "product", "exists on 910B, A3 and 950 only, this is 310P", _LOSS)
    need(x.dtype in (*_HALF, torch.float32), "input", f"is float32, float16 or bfloat16, got {x.dtype}", _LOSS)
    need(x.dim() == 2 and x.shape[1] > 0, "input", f"is [N, C] with C > 0, got {list(x.shape)}", _LOSS)
    need(x.shape[0] <= 200000, "input", f"has at most 200000 rows, got {x.shape[0]}", _LOSS_OP)
    need(target.dtype in (torch.int32, torch.int64), "target", f"is int32 or int64, got {target.dtype}", _LOSS)
    need(list(target.shape) == [x.shape[0]], "target", f"is [{x.shape[0]}], got {list(target.shape)}", _LOSS)
    fits = weight is None or (weight.dtype == torch.float32 and list(weight.shape) == [x.shape[1]])
    need(fits, "weight", f"is float32 [{x.shape[1]}]", _LOSS)
    need(reduction in ("mean", "sum", "none"), "reduction", f"is mean, sum or none, got {reduction}", _LOSS)
    need(0 <= smoothing <= 1, "labelSmoothing", f"lies in [0, 1], got {smoothing}", _LOSS)
    need(z == 0 and not want_z, "lseSquareScaleForZloss", "z-loss is not supported", _LOSS)


def _weights(classes: int, target: Tensor, weight: Tensor | None, ignore: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows' classes, rows' weights (0 where ignored) and the classes' weights. A negative ignore_index means none."""
    kept = target != ignore if ignore >= 0 else torch.ones_like(target, dtype=torch.bool)
    inside = (target >= 0) & (target < classes) | ~kept
    need(bool(inside.all()), "target", f"lies in [0, {classes}); a negative ignoreIndex ignores nothing", _LOSS_OP)
    each = torch.ones(classes) if weight is None else weight
    chosen = target.long().where(kept, 0)
    return chosen, each[chosen] * kept, each


@aclnn(
    "CrossEntropyLoss",
    "T input, T target, T weight, s reduction, i64 ignoreIndex, f64 labelSmoothing, f64 lseSquareScaleForZloss, "
    "b returnZloss, T! loss, T! logProb, T! zloss, T! lseForZloss",
    rules=_rules,
)
def cross_entropy(
    x: Tensor, target: Tensor, weight: Tensor | None, reduction: str, ignore: int, smoothing: float, z: float,
    want_z: bool, loss: Tensor, log_prob: Tensor, z_loss: Tensor, lse: Tensor,
) -> None:  # fmt: skip
    logs = x.float().log_softmax(-1)
    log_prob.copy_(logs)
    chosen, factors, each = _weights(x.shape[1], target, weight, ignore)
    rows = -logs.gather(1, chosen[:, None])[:, 0] * factors
    if smoothing:
        spread = -(logs * each).sum(-1) * (factors > 0)
        rows = (1 - smoothing) * rows + smoothing / x.shape[1] * spread
    result = {"none": rows, "sum": rows.sum(), "mean": rows.sum() / factors.sum()}[reduction]
    loss.copy_(result.view_as(loss))


@aclnn(
    "CrossEntropyLossGrad",
    "T gradLoss, T logProb, T target, T weight, T gradZloss, T lseForZloss, s reduction, i64 ignoreIndex, "
    "f64 labelSmoothing, f64 lseSquareScaleForZloss, T! out",
)
def cross_entropy_grad(
    grad: Tensor, log_prob: Tensor, target: Tensor, weight: Tensor | None, grad_z: None, lse: None, reduction: str,
    ignore: int, smoothing: float, z: float, out: Tensor,
) -> None:  # fmt: skip
    logs = log_prob.float()
    chosen, factors, each = _weights(logs.shape[1], target, weight, ignore)
    scale = grad.float().view(-1, 1) / (factors.sum() if reduction == "mean" else 1)
    by_logs = torch.zeros_like(logs).scatter_(1, chosen[:, None], -(1 - smoothing) * factors[:, None])
    by_logs -= smoothing / logs.shape[1] * each * (factors > 0)[:, None]
    by_logs = by_logs * scale
    out.copy_(by_logs - logs.exp() * by_logs.sum(-1, keepdim=True))


def _sum_rules(x: Tensor, weight: Tensor, target: Tensor, first: int, last: int, *outputs: Tensor | None) -> None:
    need(product() in ("910B", "A3"), "product", f"exists on 910B and A3 only, this is {product()}", _SUM)
    need(x.dtype in _HALF and x.dtype == weight.dtype, "input", "input and weight are both float16 or bfloat16", _SUM)
    need(x.shape[1] <= 65534, "input", f"has at most 65534 columns, got {x.shape[1]}", _SUM)
    need(
        weight.shape[0] > 0 and weight.shape[1] == x.shape[1],
        "weight",
        f"is [V, {x.shape[1]}], got {list(weight.shape)}",
        _SUM,
    )
    need(target.dtype in (torch.int32, torch.int64), "target", f"is int32 or int64, got {target.dtype}", _SUM)
    need(list(target.shape) == [x.shape[0]], "target", f"is [{x.shape[0]}], got {list(target.shape)}", _SUM)
    within = 0 <= first <= last <= first + weight.shape[0] - 1
    need(within, "vocabEndIndex", f"lies in [{first}, {first + weight.shape[0] - 1}], got {last}", _SUM)


@aclnn(
    "FusedLinearOnlineMaxSum",
    "T input, T weight, T target, i64 vocabStartIndex, i64 vocabEndIndex, "
    "T! logitsMax, T! sumExp, T! predicted, T! targetMask, T! maskedTarget, T! vocabParallelLogits",
    rules=_sum_rules,
)
def fused_linear_online_max_sum(
    x: Tensor, weight: Tensor, target: Tensor, first: int, last: int, maximum: Tensor, total: Tensor, predicted: Tensor,
    mask: Tensor, masked: Tensor, logits: Tensor | None,
) -> None:  # fmt: skip
    products = x.float() @ weight.float().T
    if logits is not None:
        logits.copy_(products)
    maximum.copy_(products.amax(-1))
    shifted = products - maximum[:, None]
    total.copy_(shifted.exp().sum(-1))
    outside = (target < first) | (target > last)
    local = (target - first).where(~outside, 0)
    masked.copy_(local)
    predicted.copy_(shifted.gather(1, local.long()[:, None])[:, 0].where(~outside, 0))
    bits = torch.ones(mask.numel() * 8, dtype=torch.int64)
    bits[: len(outside)] = outside
    mask.copy_((bits.view(-1, 8) << torch.arange(7, -1, -1)).sum(1))


def _loss_rules(
    maximum: Tensor, total: Tensor, predicted: Tensor, smoothing: float, x: Tensor | None, weight: Tensor | None,
    *outputs: Tensor | None,
) -> None:  # fmt: skip
    need(product() != "310P", "product", "exists on 910B, A3 and 950 only, this is 310P", _FUSED)
    need(smoothing == 0, "labelSmoothing", f"is 0, got {smoothing}", _FUSED)
    need(x is None and weight is None, "input", "input and weight are not given", _FUSED)
    for name, tensor in (("logitsMax", maximum), ("sumExp", total), ("predicted", predicted)):
        need(tensor.dtype == torch.float32, name, f"is float32, got {tensor.dtype}", _FUSED)


# The page declares a float, op-plugin passes a double.
@aclnn(
    "FusedCrossEntropyLossWithMaxSum",
    "T logitsMax, T sumExp, T predicted, f64 labelSmoothing, T input, T weight, T vocabParallelLogits, "
    "T! loss, T! softMax",
    rules=_loss_rules,
)
def fused_cross_entropy_loss(
    maximum: Tensor, total: Tensor, predicted: Tensor, smoothing: float, x: None, weight: None, logits: Tensor | None,
    loss: Tensor, softmax: Tensor | None,
) -> None:  # fmt: skip
    loss.copy_(total.log() - predicted)
    if logits is not None and softmax is not None:
        softmax.copy_((logits.float() - maximum[:, None]).exp() / total[:, None])


def _grad_rules(
    grad: Tensor, x: Tensor, weight: Tensor, mask: Tensor, masked: Tensor, smoothing: float, maximum: Tensor | None,
    total: Tensor | None, softmax: Tensor | None, *outputs: Tensor,
) -> None:  # fmt: skip
    need(product() in ("910B", "A3"), "product", f"exists on 910B and A3 only, this is {product()}", _GRAD)
    need(grad.dtype == torch.float32, "grad", f"is float32, got {grad.dtype}", _GRAD)
    need(x.dtype in _HALF and x.dtype == weight.dtype, "input", "input and weight are both float16 or bfloat16", _GRAD)
    need(weight.shape[0] >= 128, "weight", f"has at least 128 rows, got {weight.shape[0]}", _GRAD)
    need(smoothing == 0, "labelSmoothing", f"is 0, got {smoothing}", _GRAD)
    need(mask.numel() * 8 >= grad.numel(), "targetMask", f"has a bit for each of {grad.numel()} rows", _GRAD)
    enough = softmax is not None or (maximum is not None and total is not None)
    need(enough, "softmax", "is given, or logitsMax and sumExp", _GRAD)


@aclnn(
    "FusedLinearCrossEntropyLossGrad",
    "T grad, T input, T weight, T targetMask, T maskedTarget, f64 labelSmoothing, T logitsMax, T sumExp, T softmax, "
    "T! inputGrad, T! weightGrad",
    rules=_grad_rules,
)
def fused_linear_cross_entropy_grad(
    grad: Tensor, x: Tensor, weight: Tensor, mask: Tensor, masked: Tensor, smoothing: float, maximum: Tensor | None,
    total: Tensor | None, softmax: Tensor | None, input_grad: Tensor, weight_grad: Tensor,
) -> None:  # fmt: skip
    if softmax is None:
        assert maximum is not None
        assert total is not None
        softmax = (x.float() @ weight.float().T - maximum[:, None]).exp() / total[:, None]
    outside = (mask.long()[:, None] >> torch.arange(7, -1, -1) & 1).flatten()[: len(grad)]
    by_logits = softmax.float().clone()
    by_logits[torch.arange(len(grad)), masked.long()] -= (1 - outside).float()
    by_logits *= grad[:, None]
    input_grad.copy_(by_logits @ weight.float())
    weight_grad.copy_(by_logits.T @ x.float())
