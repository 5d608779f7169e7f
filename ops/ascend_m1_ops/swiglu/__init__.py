"""SwiGLU, the gate of the MLP:  silu(gate) · up  with  silu(x) = x / (1 + e^-x).

Source: Shazeer, "GLU Variants Improve Transformer" (2020).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["swiglu"]


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Multiply ``up`` by the activated gate.

    Args:
        gate, up: [..., intermediate], same dtype.

    Returns:
        [..., intermediate].
    """
    return torch.nn.functional.silu(gate) * up
