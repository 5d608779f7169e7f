"""Attention in plain PyTorch: every score, one mask, one softmax."""

from __future__ import annotations

import torch
from torch import Tensor

from ..blocks import widened
from .positions import Positions


def attention_reference(
    q: Tensor, k: Tensor, v: Tensor, positions: Positions, *, window: int | None = None, scale: float | None = None
) -> Tensor:
    """See ``ascend_m1_ops.attention``; this is its definition: float32 in 16 bits, rounded once.

    A query that sees no key gives zeros.
    """
    group = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = torch.einsum("bthd,bshd->bhts", widened(q), widened(k)) * scale
    visible = positions.mask(window)
    lowest = torch.finfo(scores.dtype).min
    weights = scores.masked_fill(~visible, lowest).softmax(-1).masked_fill(~visible, 0.0)
    return torch.einsum("bhts,bshd->bthd", weights, widened(v)).to(q.dtype)
