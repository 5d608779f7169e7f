"""RMS normalisation, alone, with a residual in front, and its derivative: float32 inside, rounded once."""

from __future__ import annotations

import torch
from torch import Tensor

from ..operator import aclnn, need
from ..products import product

_NORM = "ops-nn norm/rms_norm/docs/aclnnRmsNorm.md"
_GRAD = "ops-nn norm/rms_norm_grad/docs/aclnnRmsNormGrad.md"
_ADD = "ops-nn norm/add_rms_norm/docs/aclnnAddRmsNorm.md"
_ADD_OP = "op-plugin torch_npu-npu_add_rms_norm.md"
_HALF = (torch.float16, torch.bfloat16)


def normalise(x: Tensor, gamma: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Float32 (y, 1 / rms) over the trailing dimensions that gamma has; 1 / rms keeps them with size 1."""
    wide = x.float()
    dims = tuple(range(x.dim() - gamma.dim(), x.dim()))
    inverse = torch.rsqrt(wide.pow(2).mean(dims, keepdim=True) + epsilon)
    return wide * inverse * gamma.float(), inverse


def _check(x: Tensor, gamma: Tensor, page: str) -> None:
    types, where = (x.dtype, gamma.dtype), product()
    if where == "310P":
        allowed = types in ((torch.float16, torch.float16), (torch.float32, torch.float32))
        size = x.shape[-1] * x.dtype.itemsize
        need(size >= 32, "x", f"its last axis has at least 32 bytes on 310P, got {size}", page)
    else:
        allowed = gamma.dtype in (x.dtype, torch.float32) and x.dtype in (*_HALF, torch.float32)
    need(allowed, "gamma", f"the pair x {x.dtype}, gamma {gamma.dtype} is not supported on {where}", page)
    trailing = x.shape[x.dim() - gamma.dim() :]
    need(
        gamma.shape == trailing, "gamma", f"is x's trailing dimensions {list(trailing)}, got {list(gamma.shape)}", page
    )


def _rules(x: Tensor, gamma: Tensor, epsilon: float, y: Tensor, rstd: Tensor) -> None:
    need(1 <= x.dim() <= 8, "x", f"has 1 to 8 dimensions, got {x.dim()}", _NORM)
    need(gamma.numel() > 0, "gamma", "is not empty", _NORM)
    _check(x, gamma, _NORM)


@aclnn("RmsNorm", "T x, T gamma, f64 epsilon, T! yOut, T! rstdOut", rules=_rules)
def rms_norm(x: Tensor, gamma: Tensor, epsilon: float, y: Tensor, rstd: Tensor) -> None:
    result, inverse = normalise(x, gamma, epsilon)
    y.copy_(result)
    rstd.copy_(inverse.view_as(rstd))


def _grad_rules(dy: Tensor, x: Tensor, rstd: Tensor, gamma: Tensor, dx: Tensor, dgamma: Tensor) -> None:
    need(
        dy.dtype == x.dtype and dy.shape == x.shape, "dy", f"has dtype and shape of x, {x.dtype} {list(x.shape)}", _GRAD
    )
    need(rstd.dtype == torch.float32, "rstd", f"is float32, got {rstd.dtype}", _GRAD)
    _check(x, gamma, _GRAD)


@aclnn("RmsNormGrad", "T dy, T x, T rstd, T gamma, T! dxOut, T! dgammaOut", rules=_grad_rules)
def rms_norm_grad(dy: Tensor, x: Tensor, rstd: Tensor, gamma: Tensor, dx: Tensor, dgamma: Tensor) -> None:
    lead = x.dim() - gamma.dim()
    dims = tuple(range(lead, x.dim()))
    inverse = rstd.reshape(*x.shape[:lead], *[1] * gamma.dim())
    normal, scaled = x.float() * inverse, dy.float() * gamma.float()
    dx.copy_((scaled - normal * (scaled * normal).mean(dims, keepdim=True)) * inverse)
    dgamma.copy_((dy.float() * normal).sum_to_size(gamma.shape))


def _add_rules(
    x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float, y: Tensor, rstd: Tensor | None, x: Tensor | None
) -> None:
    need(x1.numel() > 0 and gamma.numel() > 0, "x1", "no tensor is empty", _ADD_OP)
    need(
        x1.dtype == x2.dtype and x1.shape == x2.shape,
        "x2",
        f"has x1's dtype and shape, {x1.dtype} {list(x1.shape)}",
        _ADD,
    )
    need(gamma.dtype == x1.dtype, "gamma", f"has x1's dtype {x1.dtype}, got {gamma.dtype}", _ADD)
    need(product() != "310P" or x1.dtype != torch.bfloat16, "x1", "is not bfloat16 on 310P", _ADD)
    need(epsilon >= 0, "epsilon", f"is not negative, got {epsilon}", _ADD)
    trailing = x1.shape[x1.dim() - gamma.dim() :]
    need(
        gamma.shape == trailing, "gamma", f"is x1's trailing dimensions {list(trailing)}, got {list(gamma.shape)}", _ADD
    )


@aclnn("AddRmsNorm", "T x1, T x2, T gamma, f64 epsilon, T! yOut, T! rstdOut, T! xOut", rules=_add_rules)
def add_rms_norm(
    x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float, y: Tensor, rstd: Tensor | None, x: Tensor | None
) -> None:
    """The sum is rounded to x's dtype, and that is what is normalised. On 310P rstd is invalid: it stays unwritten."""
    total = x1 + x2
    result, inverse = normalise(total, gamma, epsilon)
    if x is not None:
        x.copy_(total)
    if rstd is not None and product() != "310P":
        rstd.copy_(inverse.view_as(rstd))
    y.copy_(result)
