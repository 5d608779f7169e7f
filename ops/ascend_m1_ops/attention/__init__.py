"""Grouped-query attention, global or with a sliding window, over anything that ``Positions`` can describe.

    out_i = Σ_j softmax_j(q_i · k_j · scale) v_j        over the keys j visible to i, scale = head_dim^-0.5

Source: Vaswani et al. (2017); grouped heads: Ainslie et al. (2023); window: Beltagy et al. (2020), counted as in the
published model: a query sees at most ``window`` keys, its own included.

Scores are never held for the whole sequence: queries go in blocks, and a window block meets only the keys that it can
see, so time and memory of a window layer grow with T · window, not with T².
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .positions import Positions
from .reference import attention_reference

__all__ = ["Positions", "attention", "attention_reference", "sdpa"]

# A kernel computes one dense block: q [B, T, H, D], k and v [B, S, KV, D], mask [B or 1, 1, T, S] or None, causal,
# scale. With ``causal`` (only when T == S and mask is None) query i sees keys 0..i.
Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None, bool, float], Tensor]

_BLOCK = 1024  # queries at once: a mask block of 32,768 keys is then 32 MiB


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    """The default kernel: PyTorch's scaled_dot_product_attention."""
    batch, queries, heads, head_dim = q.shape
    kv_heads = k.shape[2]
    k, v = k.transpose(1, 2), v.transpose(1, 2)
    if queries == 1:
        # The heads of a group become rows of one small matrix: K and V are read once, not once per query head.
        rows = q.view(batch, kv_heads, heads // kv_heads, head_dim)
        out = torch.nn.functional.scaled_dot_product_attention(rows, k, v, mask, scale=scale)
        return out.reshape(batch, 1, heads, head_dim)
    out = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2), k, v, mask, is_causal=causal, scale=scale, enable_gqa=heads != kv_heads
    )
    return out.transpose(1, 2)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Positions | None = None,
    *,
    window: int | None = None,
    scale: float | None = None,
    kernel: Kernel = sdpa,
) -> Tensor:
    """Attend.

    Args:
        q: [batch, T, heads, head_dim].
        k, v: [batch, S, kv_heads, head_dim]; heads is a multiple of kv_heads.
        positions: who sees whom; None: the queries are the last T of S tokens in order, without padding.
        window: keys visible to a query, its own included; None: all before it.
        scale: of the scores; head_dim^-0.5 by default.
        kernel: computes one block.

    Returns:
        [batch, T, heads, head_dim].
    """
    queries, keys = q.shape[1], k.shape[1]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if window is not None and window >= keys and positions is None:
        window = None
    if positions is None and window is None and queries in (1, keys):
        return kernel(q, k, v, None, queries > 1, scale)
    aligned = positions is None or positions.in_order
    who = positions or Positions.aligned(queries, keys, q.device)
    outputs = []
    for start in range(0, queries, _BLOCK):
        rows = slice(start, min(start + _BLOCK, queries))
        columns = _reachable(rows, keys - queries, window if positions is None else None) if aligned else slice(0, keys)
        # A single query that is last in order sees every key left: no mask, the fast kernel.
        mask = None if positions is None and queries == 1 else who.mask(window, rows, columns)
        outputs.append(kernel(q[:, rows], k[:, columns], v[:, columns], mask, False, scale))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


def _reachable(rows: slice, offset: int, window: int | None) -> slice:
    """Keys that queries ``rows`` can see when query i stands at key offset + i."""
    first = 0 if window is None else max(0, rows.start + offset - window + 1)
    return slice(first, rows.stop + offset)
