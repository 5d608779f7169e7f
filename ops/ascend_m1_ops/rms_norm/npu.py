"""RMS normalisation on an NPU."""

from __future__ import annotations

from torch import Tensor

from ..blocks import gradient_wanted
from ..products.npu import chosen
from .reference import rms_norm_reference


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See ``ascend_m1_ops.rms_norm``."""
    if chosen("rms_norm", x.dtype) != "npu_rms_norm":
        return rms_norm_reference(x, weight, eps)
    import torch_npu

    out: Tensor = torch_npu.npu_rms_norm(x, weight, eps)[0]
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See ``ascend_m1_ops.add_rms_norm``."""
    if chosen("add_rms_norm", x.dtype) != "npu_add_rms_norm" or gradient_wanted(x, residual, weight):
        total = x + residual
        return rms_norm(total, weight, eps), total
    import torch_npu

    normed, _, total = torch_npu.npu_add_rms_norm(x, residual, weight, eps)
    return normed, total
