"""Matrix products, norms, activation and rotation."""

from __future__ import annotations

import torch
from torch import Tensor

from .registry import operator


@operator("MatMul", "MatMulV2")
def matmul(
    x1: Tensor,
    x2: Tensor,
    bias: Tensor | None = None,
    offset_w: Tensor | None = None,
    transpose_x1: bool = False,
    transpose_x2: bool = False,
    offset_x: int = 0,
) -> Tensor:
    """x1 · x2 (+ bias) of two matrices."""
    if offset_w is not None or offset_x:
        raise NotImplementedError("quantisation offsets of MatMulV2 are not answered")
    if x1.dim() != 2 or x2.dim() != 2:
        raise ValueError(f"x1 has {x1.dim()} axes, x2 {x2.dim()}; MatMul takes matrices, use BatchMatMul")
    y = (x1.t() if transpose_x1 else x1) @ (x2.t() if transpose_x2 else x2)
    return y if bias is None else (y + bias).to(y.dtype)


@operator("BatchMatMul", "BatchMatMulV2")
def batch_matmul(
    x1: Tensor,
    x2: Tensor,
    bias: Tensor | None = None,
    adj_x1: bool = False,
    adj_x2: bool = False,
    offset_x: int = 0,
) -> Tensor:
    """x1 · x2 (+ bias) over leading axes."""
    if offset_x:
        raise NotImplementedError("quantisation offsets of BatchMatMulV2 are not answered")
    y = (x1.mT if adj_x1 else x1) @ (x2.mT if adj_x2 else x2)
    return y if bias is None else (y + bias).to(y.dtype)


@operator("RmsNorm")
def rms_norm(x: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    """(x / rms · gamma in x's dtype, 1 / rms as float32); the mean is over gamma's axes, computed in float32."""
    if gamma.shape != x.shape[x.dim() - gamma.dim() :]:
        raise ValueError(f"gamma {tuple(gamma.shape)} is not the trailing shape of x {tuple(x.shape)}")
    axes = tuple(range(x.dim() - gamma.dim(), x.dim()))
    rstd = torch.rsqrt(x.float().square().mean(axes, keepdim=True) + epsilon)
    return (x.float() * rstd * gamma.float()).to(x.dtype), rstd


@operator("AddRmsNorm")
def add_rms_norm(x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor, Tensor]:
    """(norm, 1 / rms, x1 + x2): the norm is of the rounded sum."""
    if not x1.dtype == x2.dtype == gamma.dtype:
        raise TypeError(f"x1 {x1.dtype}, x2 {x2.dtype}, gamma {gamma.dtype}; AddRmsNorm wants one dtype")
    x = x1 + x2
    y, rstd = rms_norm(x, gamma, epsilon)
    return y, rstd, x


@operator("SwiGlu")
def swiglu(x: Tensor, dim: int = -1) -> Tensor:
    """silu(first half) · second half along one axis of even length."""
    if x.shape[dim] % 2:
        raise ValueError(f"axis {dim} has length {x.shape[dim]}; SwiGlu wants an even one")
    gate, up = x.float().chunk(2, dim)
    return (torch.nn.functional.silu(gate) * up).to(x.dtype)


@operator("RotaryPositionEmbedding")
def rotary_position_embedding(x: Tensor, cos: Tensor, sin: Tensor, mode: int = 0) -> Tensor:
    """x · cos + rotate_half(x) · sin, half-split (mode 0); x [T, N, D], cos and sin [T, 1 or N, D].

    Rules of 910B and A3 (aclnnRotaryPositionEmbedding, 3-D form): D even and below 896, N below 1000, one dtype.
    """
    heads, dim = x.shape[-2:]
    if mode != 0:
        raise NotImplementedError(f"mode {mode}; only the half-split rotation (0) is answered")
    if x.dim() != 3 or dim % 2 or dim >= 896 or heads >= 1000:
        raise ValueError(f"x {tuple(x.shape)}; wanted [T, N, D] with D even and below 896, N below 1000")
    if not x.dtype == cos.dtype == sin.dtype or cos.shape != sin.shape:
        raise ValueError(f"cos {cos.dtype} {tuple(cos.shape)}, sin {sin.dtype} {tuple(sin.shape)} for x {x.dtype}")
    if cos.shape[0] != x.shape[0] or cos.shape[1] not in (1, heads) or cos.shape[2] != dim:
        raise ValueError(f"cos {tuple(cos.shape)} for x {tuple(x.shape)}; wanted [T, 1 or N, D]")
    a, b = x.float().chunk(2, -1)
    return (x.float() * cos.float() + torch.cat((-b, a), -1) * sin.float()).to(x.dtype)
