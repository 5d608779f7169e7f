"""SwiGLU, the gate of the MLP.

    silu(gate) · up        silu(x) = x / (1 + e^-x)

Source: Shazeer, "GLU Variants Improve Transformer" (2020).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..blocks import gradient_wanted
from ..native import step
from . import npu
from .kernels import swiglu_in_place
from .reference import swiglu_reference

__all__ = ["swiglu", "swiglu_packed", "swiglu_reference"]


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Multiply ``up`` by the activated gate.

    Args:
        gate, up: [..., intermediate], same shape and dtype.

    Returns:
        [..., intermediate]. Low precision is rounded after the activation and after the product, as in the published
        model.
    """
    return torch.nn.functional.silu(gate) * up if gradient_wanted(gate, up) else swiglu_in_place(gate, up)


def swiglu_packed(gate_up: Tensor) -> Tensor:
    """``swiglu`` of one tensor that holds gate and up side by side, as one matrix product of both weights gives it.

    Args:
        gate_up: [..., 2 · intermediate].

    Returns:
        [..., intermediate]. On an NPU rounded once, elsewhere as ``swiglu``.
    """
    if gate_up.device.type == "npu":
        return npu.swiglu_packed(gate_up)
    if step.takes(gate_up) and gate_up.shape[-1] % (2 * step.SIZE) == 0:
        return step.swiglu(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    return swiglu(gate, up)
