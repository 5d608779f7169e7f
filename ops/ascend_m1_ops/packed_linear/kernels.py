"""On a CPU: our own product where it is faster, else oneDNN's, as torch's compiler calls it for fixed weights."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import native

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
    if _native(weight):
        return native.bfloat16_layout(weight.detach())
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
    if not packed.is_mkldnn:
        return native.bfloat16_linear(x, packed)
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
    return out


def _native(weight: Tensor) -> bool:
    """Not where the processor has AMX and our products cannot use it: oneDNN can."""
    blocks = weight.shape[0] % native.ROW_BLOCK == 0 and weight.shape[1] % native.INPUT_BLOCK == 0
    if weight.dtype != torch.bfloat16 or not blocks or not native.available():
        return False
    tiles = weight.shape[1] % native.TILE_INPUTS == 0 and native.uses_tiles()
    return tiles or not torch.cpu._is_amx_tile_supported()
