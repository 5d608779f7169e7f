"""The vendor's product of 16-bit activations and quantised weights."""

from __future__ import annotations

import torch
from torch import Tensor

from ..products.npu import product

_NIBBLES = 8  # int4 in an int32, the first in the lowest bits


def layout(numbers: Tensor, scales: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """int8 [in, out], or int32 [in, out / 8] of eight int4 each; scales [out] or [groups, out]."""
    if bits == 4 and product() == "310P":
        raise ValueError("4 bits: a 310P takes weights of 8 bits only")
    columns = numbers.T.contiguous()
    if bits == 8:
        return columns, scales.flatten().contiguous()
    nibbles = columns.cpu().long().unflatten(1, (-1, _NIBBLES)) & 0xF  # once, at load, so on the host
    packed = (nibbles << torch.arange(0, 4 * _NIBBLES, 4)).sum(-1)
    signed = torch.where(packed >= 2**31, packed - 2**32, packed).int()
    return signed.to(numbers.device), scales.T.contiguous()


def forward(x: Tensor, numbers: Tensor, scales: Tensor, group: int) -> Tensor:
    """See ``quant_linear``. float16 and bfloat16."""
    import torch_npu

    group = 0 if group == x.shape[-1] else group  # the vendor's word for one scale a row
    out: Tensor = torch_npu.npu_weight_quant_batchmatmul(x, numbers, scales, antiquant_group_size=group)
    return out
