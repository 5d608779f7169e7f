"""The rotation on an NPU.

``npu_rotary_mul`` casts its tables to the dtype of x, so x goes in as float32: in bfloat16 a table entry is off by up
to 2⁻⁹ of its size, which is as much again as the one rounding of the result.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..products.npu import chosen
from .reference import rope_reference


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See ``ascend_m1_ops.apply_rope``."""
    if chosen("rope", x.dtype) != "npu_rotary_mul" or x.numel() == 0:
        return rope_reference(x, cos, sin)
    import torch_npu

    heads, head_dim = x.shape[-2:]
    cos, sin = (
        torch.cat((table, table), -1).expand(*x.shape[:-2], head_dim).reshape(-1, 1, head_dim) for table in (cos, sin)
    )
    rotated: Tensor = torch_npu.npu_rotary_mul(x.reshape(-1, heads, head_dim).to(cos.dtype), cos, sin)
    return rotated.view(x.shape).to(x.dtype)
