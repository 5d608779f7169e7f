"""Rotary position embedding, half-split: dimension i is rotated together with dimension i + head_dim / 2.

    angle_i(p) = p · theta^(-2i / head_dim)        i < head_dim / 2
    (x1, x2) -> (x1·cos - x2·sin, x2·cos + x1·sin)

Source: Su et al., "RoFormer" (2021), in the half-split form of the published ``modeling_baichuan.py``. Tables and
arithmetic are float32 (float64 for float64 inputs) whatever the dtype of x; the result is rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..blocks import blocks_pay
from . import npu
from .kernels import rope_blocks
from .reference import rope_reference

__all__ = ["apply_rope", "rope_reference", "rope_tables", "shared_tables"]


def rope_tables(
    positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position.

    Args:
        positions: integer [...].
        head_dim: even.
        theta: base of the geometric series of wavelengths.
        dtype: float32, or float64 for reference work.

    Returns:
        cos and sin, each [..., head_dim / 2] of ``dtype``.
    """
    # In double precision, rounded once: an error here is multiplied by the position.
    series = [theta ** (-i / head_dim) for i in range(0, head_dim, 2)]
    frequencies = torch.tensor(series, dtype=dtype, device=positions.device)
    angles = positions.to(dtype).unsqueeze(-1) * frequencies
    return angles.cos(), angles.sin()


def shared_tables(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The tables in the form that ``apply_rope`` uses on their device, made once for all layers of a forward.

    ``apply_rope`` makes that form itself otherwise, at every call: two launches on an NPU.

    Args:
        cos, sin: [..., head_dim / 2] from ``rope_tables``.

    Returns:
        cos and sin, [..., head_dim] where an NPU's operator wants both halves, else as they are.
    """
    return npu.shared_tables(cos, sin) if cos.device.type == "npu" else (cos, sin)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x.

    Args:
        x: [..., heads, head_dim].
        cos, sin: [..., head_dim / 2] from ``rope_tables``, or what ``shared_tables`` made of them; the same for all
            heads. Their leading dimensions broadcast to those of x.

    Returns:
        The rotated x, same shape and dtype.
    """
    if x.device.type == "npu":
        return npu.apply_rope(x, cos, sin)
    return rope_blocks(x, cos, sin) if blocks_pay(x, cos, sin) else rope_reference(x, cos, sin)
