"""The AdamW step, one tensor a launch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..operator import aclnn, need
from ..products import product

_PAGE = "ops-nn optim/apply_adam_w_v2/docs/aclnnApplyAdamWV2.md"


def _rules(
    var: Tensor, m: Tensor, v: Tensor, largest: Tensor | None, grad: Tensor, step: Tensor,
    lr: float, beta1: float, beta2: float, decay: float, eps: float, amsgrad: bool, maximize: bool,
) -> None:  # fmt: skip
    need(product() != "310P", "product", "exists on 910B, A3 and 950 only, this is 310P", _PAGE)
    types = (torch.float16, torch.bfloat16, torch.float32)
    need(var.dtype in types, "var", f"is float16, bfloat16 or float32, got {var.dtype}", _PAGE)
    for name, tensor in (("m", m), ("v", v), ("maxGradNorm", largest), ("grad", grad)):
        same = tensor is None or (tensor.dtype == var.dtype and tensor.shape == var.shape)
        need(same, name, f"has var's dtype and shape, {var.dtype} {list(var.shape)}", _PAGE)
    need(largest is not None or not amsgrad, "maxGradNorm", "is required with amsgrad", _PAGE)
    need(step.numel() == 1 and step.dtype in (torch.int64, torch.float32), "step", "is one int64 or float32", _PAGE)


@aclnn(
    "ApplyAdamWV2",
    "T! var, T! m, T! v, T! maxGradNorm, T grad, T step, "
    "f32 lr, f32 beta1, f32 beta2, f32 weightDecay, f32 eps, b amsgrad, b maximize",
    rules=_rules,
)
def apply_adamw(
    var: Tensor, m: Tensor, v: Tensor, largest: Tensor | None, grad: Tensor, step: Tensor,
    lr: float, beta1: float, beta2: float, decay: float, eps: float, amsgrad: bool, maximize: bool,
) -> None:  # fmt: skip
    """op-plugin passes the number of the step before this one; states are rounded when they are written."""
    count = step.item() + 1
    gradient = -grad.float() if maximize else grad.float()
    first = m.float() * beta1 + gradient * (1 - beta1)
    second = v.float() * beta2 + gradient * gradient * (1 - beta2)
    m.copy_(first)
    v.copy_(second)
    if amsgrad and largest is not None:
        second = torch.maximum(largest.float(), second)
        largest.copy_(second)
    scale = lr / (1 - beta1**count)
    bottom = (second / (1 - beta2**count)).sqrt() + eps
    var.copy_(var.float() * (1 - lr * decay) - scale * first / bottom)
