"""The definition."""

from __future__ import annotations

from torch import Tensor


def dequantised(numbers: Tensor, scales: Tensor) -> Tensor:
    """The weight that numbers [out, in] and scales [out, in / group] stand for, in the scales' dtype."""
    groups: Tensor = numbers.to(scales.dtype).unflatten(1, (scales.shape[1], -1))
    return (groups * scales.unsqueeze(-1)).flatten(1)


def quant_linear_reference(x: Tensor, numbers: Tensor, scales: Tensor) -> Tensor:
    """x [T, in] · Wᵀ -> [T, out], in the dtypes as they are: float64 for an exact result."""
    return x @ dequantised(numbers, scales).T
