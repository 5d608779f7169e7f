"""A linear layer whose weight is whole numbers and scales: W8A16 and W4A16.

    y = x · Wᵀ        W[o, i] = numbers[o, i] · scales[o, i // group]

Numbers are symmetric: int8 in [-127, 127] with one scale for a row (the group is the whole row), or int4 in [-8, 7]
with one for every 32, 64, 128 or 256 of it. Activations stay as they are. Source: Frantar et al., "GPTQ" (2022),
for the group-wise layout; how numbers are rounded is left to whoever makes them.

``prepare`` puts them into the layout that the device's product reads, once; ``quant_linear`` multiplies.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..native import GROUPS
from . import kernels, npu
from .reference import dequantised, quant_linear_reference

__all__ = ["Prepared", "dequantised", "prepare", "quant_linear", "quant_linear_reference"]

OUTPUTS = 16  # rows are a multiple of it, for the packed layouts


@dataclass(frozen=True)
class Prepared:
    """A weight in a device's own layout.

    Attributes:
        numbers, scales: as the device's product reads them.
        bits: 4 or 8. group: inputs that share a scale. outputs: rows of the weight.
    """

    numbers: Tensor
    scales: Tensor
    bits: int
    group: int
    outputs: int


def prepare(numbers: Tensor, scales: Tensor, bits: int) -> Prepared:
    """Into the layout of the device where they are.

    Args:
        numbers: int8 [out, in]; int4 ones hold one number a byte here.
        scales: [out, in / group] of the activations' dtype: float32, bfloat16 or float16.
        bits: 4 or 8.

    Raises:
        ValueError: shapes, bits and group do not fit.
    """
    outputs, inputs = numbers.shape
    groups = scales.shape[1] if scales.dim() == 2 and scales.shape[0] == outputs else 0
    group = inputs // groups if groups and inputs % groups == 0 else 0
    if bits not in (4, 8) or not group or outputs % OUTPUTS or (bits == 8 and groups != 1):
        raise ValueError(f"{bits} bits, numbers {list(numbers.shape)}, scales {list(scales.shape)}: they do not fit")
    if bits == 4 and group not in GROUPS:
        raise ValueError(f"group of {group}: give one of {', '.join(map(str, GROUPS))}")
    layout = npu.layout if numbers.device.type == "npu" else kernels.layout
    return Prepared(*layout(numbers, scales, bits), bits, group, outputs)


def quant_linear(x: Tensor, weight: Prepared) -> Tensor:
    """Multiply; no gradient.

    Args:
        x: [T, in] of the scales' dtype.

    Returns:
        [T, out]; sums in float32, rounded once.
    """
    if x.device.type == "npu":
        return npu.forward(x, weight.numbers, weight.scales, weight.group)
    return kernels.forward(x, weight.numbers, weight.scales, weight.bits, weight.group)
