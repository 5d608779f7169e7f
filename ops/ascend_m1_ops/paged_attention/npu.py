"""Paged attention by the vendor's fused operator, layout TND with a 3-D cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..attention.npu import triangle

_NO_LIMIT = 2147483647


def attend(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    lengths: list[int] | Tensor | None,
    query_ends: list[int] | None,
    scale: float,
) -> Tensor:
    """See ``ascend_m1_ops.paged_attention``. A decode step takes no mask, which keeps the fast kernels."""
    decode = query_ends is None
    ends: list[int] | Tensor = list(range(1, q.shape[0] + 1)) if query_ends is None else query_ends
    if isinstance(lengths, Tensor):
        ends, lengths = torch.arange(1, q.shape[0] + 1, device=q.device), lengths.long()
    arguments: dict[str, Any] = {
        "atten_mask": None if decode else triangle(q.device),
        "actual_seq_qlen": ends,
        "actual_seq_kvlen": lengths,
        "block_table": block_table,
        "num_query_heads": q.shape[1],
        "num_key_value_heads": k_cache.shape[2],
        "softmax_scale": scale,
        "pre_tokens": _NO_LIMIT,
        "next_tokens": _NO_LIMIT if decode else 0,
        "input_layout": "TND",
        "sparse_mode": 0 if decode else 3,
        "block_size": k_cache.shape[1],
    }
    out: Tensor = _operator(lengths)(q, k_cache.flatten(2), v_cache.flatten(2), **arguments)[0]
    return out


def _operator(lengths: list[int] | Tensor | None) -> Any:
    """Lengths on the device are known to TorchAir's CANN graph alone (defined by ``cann_graph.npu.backend``)."""
    if isinstance(lengths, Tensor):
        return torch.ops.air.npu_fused_infer_attention_score_v2
    return torch.ops.npu.npu_fused_infer_attention_score_v2
