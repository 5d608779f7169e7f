"""The rotation on a CPU, without gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from ..blocks import blockwise


def rope_blocks(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``apply_rope`` in blocks of tokens: one multiplication, then the other half's share added in place."""
    half = x.shape[-1] // 2
    cos, sin = (table.expand(*x.shape[:-2], half).reshape(-1, 1, half) for table in (cos, sin))

    def block(rows: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        wide = rows.to(cos.dtype)
        rotated = wide * torch.cat((cos, cos), dim=-1)
        rotated[..., :half].addcmul_(wide[..., half:], sin, value=-1)
        rotated[..., half:].addcmul_(wide[..., :half], sin)
        return rotated

    return blockwise(block, x.reshape(-1, *x.shape[-2:]), cos, sin).view(x.shape)
