"""oneDNN's inner product, as torch's own compiler calls it for weights that never change."""

from __future__ import annotations

import torch
from torch import Tensor

_SMALLEST = 2**20  # elements; below it a weight stays in the processor's caches, and the plain product is as fast


def packing_pays(weight: Tensor) -> bool:
    """Whether ``pack`` can take the weight [out, in], and makes its products faster: a large one on a CPU."""
    if weight.device.type != "cpu" or weight.numel() < _SMALLEST or not torch.backends.mkldnn.is_available():
        return False
    supported: bool = weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    return supported


def pack(weight: Tensor) -> Tensor:
    """A copy of the weight [out, in] in an opaque layout, for ``packed_linear`` alone."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
    return packed


def packed_linear(x: Tensor, packed: Tensor) -> Tensor:
    """Multiply; no gradient.

    Args:
        x: [T, in] of the weight's dtype.
        packed: what ``pack`` made of the weight.

    Returns:
        [T, out]; sums in float32, rounded once.
    """
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
    return out
