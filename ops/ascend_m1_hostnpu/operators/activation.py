"""SwiGLU: silu(first half) * second half, in float32, rounded once."""

from __future__ import annotations

import torch
from torch import Tensor

from ..operator import aclnn, need
from ..products import product

_PAGE = "ops-nn activation/swi_glu/docs/aclnnSwiGlu.md"
_GRAD_PAGE = "ops-nn activation/swi_glu_grad/docs/aclnnSwiGluGrad.md"


def _check(x: Tensor, dim: int, page: str) -> None:
    where = product()
    types = (torch.float16, torch.float32, torch.bfloat16)
    need(x.dtype in types[: 2 if where == "310P" else 3], "x", f"its dtype {x.dtype} is not supported on {where}", page)
    need(x.dim() > 0 and -x.dim() <= dim < x.dim(), "dim", f"lies in [-{x.dim()}, {x.dim()})", page)
    need(x.shape[dim] % 2 == 0, "x", f"its size along dim is even, got {x.shape[dim]}", page)
    need(x.is_contiguous(), "x", "must be contiguous", page)
    if where == "310P":
        need(x.numel() > 0, "x", "is not empty on 310P", page)
        need(
            x.shape[-1] * x.dtype.itemsize % 64 == 0,
            "x",
            f"its rows are multiples of 64 bytes on 310P, got {x.shape[-1]}",
            page,
        )


@aclnn("SwiGlu", "T x, i64 dim, T! out", rules=lambda x, dim, out: _check(x, dim, _PAGE))
def swiglu(x: Tensor, dim: int, out: Tensor) -> None:
    gate, up = x.float().chunk(2, dim)
    out.copy_(torch.nn.functional.silu(gate) * up)


def _grad_rules(grad: Tensor, x: Tensor, dim: int, out: Tensor) -> None:
    _check(x, dim, _GRAD_PAGE)
    need(grad.dtype == x.dtype, "yGrad", f"has the dtype of x, {x.dtype}, got {grad.dtype}", _GRAD_PAGE)


@aclnn("SwiGluGrad", "T yGrad, T x, i64 dim, T! out", rules=_grad_rules)
def swiglu_grad(grad: Tensor, x: Tensor, dim: int, out: Tensor) -> None:
    gate, up = x.float().chunk(2, dim)
    wide, s = grad.float(), gate.sigmoid()
    out.copy_(torch.cat((wide * up * s * (1 + gate * (1 - s)), wide * gate * s), dim))
