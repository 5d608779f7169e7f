"""SwiGLU on an NPU."""

from __future__ import annotations

import torch
from torch import Tensor

from ..products.npu import chosen


def swiglu_packed(gate_up: Tensor) -> Tensor:
    """See ``ascend_m1_ops.swiglu_packed``."""
    if chosen("swiglu", gate_up.dtype) != "npu_swiglu":
        gate, up = gate_up.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate) * up
    import torch_npu

    out: Tensor = torch_npu.npu_swiglu(gate_up, dim=-1)
    return out
