"""The fused operator in plain PyTorch: token by token, any device, any float dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from ..blocks import wide_dtype
from ..rope import rope_reference
from .tokens import TokenTable


def conv_rope_cache_reference(
    packed: Tensor,
    weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    table: TokenTable,
    k_cache: Tensor,
    v_cache: Tensor,
    state: Tensor,
) -> Tensor:
    """See ``ascend_m1_ops.conv_rope_cache``; this is its definition."""
    block_size, kv_heads, head_dim = k_cache.shape[1:]
    wide = wide_dtype(packed.dtype)
    heads = packed.unflatten(1, (-1, head_dim))
    q, kv = heads[:, : -2 * kv_heads], heads[:, -2 * kv_heads :].unflatten(1, (2, kv_heads))
    cos, sin = cos[table.positions.long()], sin[table.positions.long()]
    borders, rows, continues = table.cu_seqlens.tolist(), table.state_rows.tolist(), table.continues.tolist()
    before = state.clone()
    for token, (slot, start) in enumerate(zip(table.slots.tolist(), table.starts.tolist(), strict=True)):
        if start >= 0:
            known = rows[start] >= 0 and continues[start]
            previous = before[rows[start]] if known else torch.zeros_like(before[0])
            if rows[start] >= 0:
                state[rows[start]] = kv[borders[start + 1] - 1]
        else:
            previous = kv[token - 1]
        if slot >= 0:
            convolved = weight[..., :1].to(wide) * previous.to(wide) + weight[..., 1:].to(wide) * kv[token].to(wide)
            k, v = convolved.to(packed.dtype)
            k_cache[slot // block_size, slot % block_size] = rope_reference(k, cos[token], sin[token])
            v_cache[slot // block_size, slot % block_size] = v
    return rope_reference(q, cos, sin)
