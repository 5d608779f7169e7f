"""On a CPU a product of our own where the processor has it, else torch's; on other devices the weight is expanded."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import native
from .reference import dequantised

_CENTRE = 8  # torch's packed int4 are 0 to 15 and stand for the number less this


def layout(numbers: Tensor, scales: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """For int4 on a CPU: ``int4_layout``, or torch's: uint8 [out, in / 2], and scales with zero points [groups, out,
    2]. Else as they are.
    """
    if numbers.device.type != "cpu" or bits == 8:
        return numbers.contiguous(), scales.contiguous()
    if scales.dtype == torch.bfloat16 and native.available():
        return native.int4_layout(numbers, scales)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(numbers.int() + _CENTRE, 1)
    return packed, torch.stack([scales.T, torch.zeros_like(scales.T)], dim=-1).contiguous()


def forward(x: Tensor, numbers: Tensor, scales: Tensor, bits: int, group: int) -> Tensor:
    """See ``quant_linear``."""
    if x.device.type != "cpu":
        return torch.nn.functional.linear(x, dequantised(numbers, scales))
    out: Tensor
    if bits == 8:
        out = torch._weight_int8pack_mm(x.contiguous(), numbers, scales.flatten())
    elif numbers.dtype == torch.int16:
        out = native.int4_linear(x, numbers, scales)
    else:
        out = torch.ops.aten._weight_int4pack_mm_for_cpu(x.contiguous(), numbers, group, scales)
    return out
