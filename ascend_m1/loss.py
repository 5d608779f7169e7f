"""The language-model loss: which token each position has to predict, and the cross entropy over the NormHead."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ascend_m1_ops import norm_head_loss

from .layout import make_layout
from .norm_head import NormHead

IGNORED = -100


def next_tokens(
    labels: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None, seqlens: Tensor | None
) -> Tensor:
    """Labels [batch, seq] shifted by one: never to or from padding, never across packed documents."""
    batch, columns = labels.shape
    targets = nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    mask = None if attention_mask is None else attention_mask[:, -columns:]
    layout = make_layout(batch, columns, labels.device, attention_mask=mask, position_ids=position_ids, seqlens=seqlens)
    if layout.document is not None:
        last = layout.document.diff(dim=1, append=layout.document[:, -1:]) != 0
        targets = targets.masked_fill(last, IGNORED)
    if layout.real is not None:
        pair = layout.real & nn.functional.pad(layout.real[:, 1:], (0, 1))
        targets = targets.masked_fill(~pair, IGNORED)
    return targets


def mean_loss(hidden: Tensor, head: NormHead, targets: Tensor, count: Any = None) -> Tensor:
    """Mean cross entropy of hidden [batch, seq, hidden] against targets [batch, seq]; ``count``: another divisor."""
    flat = targets.flatten().long()
    total = norm_head_loss(hidden.flatten(0, 1), head.weight, head.scale(), flat)
    return total / (count if count is not None else (flat != IGNORED).sum())
