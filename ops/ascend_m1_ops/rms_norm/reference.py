"""RMS normalisation in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..blocks import widened


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See ``ascend_m1_ops.rms_norm``; this is its definition. Low-precision x is normalised in float32."""
    wide = widened(x)
    normalised = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (normalised * weight.to(wide.dtype)).to(x.dtype)
