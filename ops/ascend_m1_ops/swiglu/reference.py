"""SwiGLU in plain PyTorch."""

from __future__ import annotations

from torch import Tensor

from ..blocks import widened


def swiglu_reference(gate: Tensor, up: Tensor) -> Tensor:
    """See ``ascend_m1_ops.swiglu``; this is its definition. Low-precision inputs are multiplied in float32."""
    wide = widened(gate)
    return (wide * wide.sigmoid() * up.to(wide.dtype)).to(gate.dtype)
