"""Rotary position embedding, half-split: dimension i is rotated together with dimension i + head_dim / 2.

    angle_i(p) = p · theta^(-2i / head_dim)        i < head_dim / 2
    (x1, x2) -> (x1·cos - x2·sin, x2·cos + x1·sin)

Source: Su et al., "RoFormer" (2021), in the half-split form of the published ``modeling_baichuan.py``. Tables and
arithmetic are float32 (float64 for float64 inputs) whatever the dtype of x; the result is rounded once.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..blocks import blocks_pay
from .kernels import rope_blocks
from .reference import rope_reference

__all__ = ["apply_rope", "rope_reference", "rope_tables"]


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
    angles = positions.to(dtype).unsqueeze(-1) * _frequencies(head_dim, theta, dtype, positions.device)
    return angles.cos(), angles.sin()


@lru_cache(maxsize=32)
def _frequencies(head_dim: int, theta: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """theta^(-2i / head_dim) [head_dim / 2], rounded once from double precision; made once per device."""
    with torch.inference_mode(False):
        return torch.tensor([theta ** (-i / head_dim) for i in range(0, head_dim, 2)], dtype=dtype, device=device)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x.

    Args:
        x: [..., heads, head_dim].
        cos, sin: [..., head_dim / 2] from ``rope_tables``; the same for all heads. Their leading dimensions
            broadcast to those of x.

    Returns:
        The rotated x, same shape and dtype.
    """
    return rope_blocks(x, cos, sin) if blocks_pay(x, cos, sin) else rope_reference(x, cos, sin)
