"""Paged attention in plain PyTorch: one sequence after the other, its keys gathered, every score."""

from __future__ import annotations

import torch
from torch import Tensor

from ..blocks import widened


def paged_attention_reference(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    lengths: list[int],
    query_ends: list[int],
    scale: float,
) -> Tensor:
    """See ``ascend_m1_ops.paged_attention``; this is its definition: float32 in 16 bits, rounded once."""
    outputs, start, group = [], 0, q.shape[1] // k_cache.shape[2]
    for blocks, length, end in zip(block_table.long(), lengths, query_ends, strict=True):
        keys, values = (
            widened(cache[blocks]).flatten(0, 1)[:length].repeat_interleave(group, 1) for cache in (k_cache, v_cache)
        )
        count = end - start
        scores = torch.einsum("thd,shd->hts", widened(q[start:end]), keys) * scale
        hidden = torch.ones(count, length, dtype=torch.bool, device=q.device).triu(length - count + 1)
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        outputs.append(torch.einsum("hts,shd->thd", weights, values).to(q.dtype))
        start = end
    return torch.cat(outputs) if outputs else torch.zeros_like(q)
