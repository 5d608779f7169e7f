"""RMS normalisation on a CPU, without gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from ..blocks import blockwise, widened


def rms_norm_blocks(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``rms_norm`` in blocks of rows; the mean square comes from one reading pass of vector_norm."""
    hidden, wide_weight = x.shape[-1], widened(weight)

    def block(rows: Tensor) -> Tensor:
        wide = widened(rows)
        norm: Tensor = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        return (wide * norm.square_().div_(hidden).add_(eps).rsqrt_()).mul_(wide_weight)

    return blockwise(block, x.reshape(-1, hidden)).view(x.shape)
