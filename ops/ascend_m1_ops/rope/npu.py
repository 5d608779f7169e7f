"""The rotation on an NPU.

``npu_rotary_mul`` casts its tables to the dtype of x, so x goes in as float32: in bfloat16 a table entry is off by up
to 2⁻⁹ of its size, which is as much again as the one rounding of the result.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..products.npu import chosen
from .reference import rope_reference

_OPERATOR = "npu_rotary_mul"


def shared_tables(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """See ``ascend_m1_ops.shared_tables``: the operator takes tables [..., head_dim], both halves alike."""
    if chosen("rope", cos.dtype) != _OPERATOR:
        return cos, sin
    return torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See ``ascend_m1_ops.apply_rope``."""
    heads, head_dim = x.shape[-2:]
    if chosen("rope", x.dtype) != _OPERATOR or x.numel() == 0:
        return rope_reference(x, *(table[..., : head_dim // 2] for table in (cos, sin)))
    import torch_npu

    if cos.shape[-1] != head_dim:
        cos, sin = shared_tables(cos, sin)
    cos, sin = (table.expand(*x.shape[:-2], head_dim).reshape(-1, 1, head_dim) for table in (cos, sin))
    rotated: Tensor = torch_npu.npu_rotary_mul(x.reshape(-1, heads, head_dim).to(cos.dtype), cos, sin)
    return rotated.view(x.shape).to(x.dtype)
