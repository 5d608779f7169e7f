"""Root-mean-square normalisation, alone and fused with the residual addition before it.

    y = x / sqrt(mean(x²) + eps) · weight        the mean over the last dimension, in float32

Source: Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..blocks import blocks_pay
from ..native import step
from . import npu
from .kernels import rms_norm_blocks
from .reference import rms_norm_reference

__all__ = ["add_rms_norm", "rms_norm", "rms_norm_reference"]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise the last dimension.

    Args:
        x: [..., hidden].
        weight: [hidden], dtype of x.
        eps: added to the mean square.

    Returns:
        [..., hidden], dtype of x. Low-precision inputs are computed in float32 and rounded once.
    """
    if x.device.type == "npu":
        return npu.rms_norm(x, weight, eps)
    if step.takes(x, weight) and weight.shape == x.shape[-1:]:
        return step.rms_norm(x, None, weight, eps)[0]
    if blocks_pay(x, weight):
        return rms_norm_blocks(x, weight, eps)
    return torch.nn.functional.rms_norm(x, (x.shape[-1],), weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Add the residual, then normalise.

    Args:
        x, residual: [..., hidden].
        weight: [hidden].
        eps: added to the mean square.

    Returns:
        The normalised sum and the sum itself (the next residual), each [..., hidden].
    """
    if x.device.type == "npu":
        return npu.add_rms_norm(x, residual, weight, eps)
    if step.takes(x, residual, weight) and x.shape == residual.shape and weight.shape == x.shape[-1:]:
        return step.rms_norm(x, residual, weight, eps)
    total = x + residual
    return rms_norm(total, weight, eps), total
