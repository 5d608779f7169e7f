"""Grouped-query attention, global or with a sliding window, over anything that ``Positions`` can describe.

    out_i = Σ_j softmax_j(q_i · k_j · scale) v_j        over the keys j visible to i, scale = head_dim^-0.5

Source: Vaswani et al. (2017); grouped heads: Ainslie et al. (2023); window: Beltagy et al. (2020), counted as in the
published model: a query sees at most ``window`` keys, its own included.

Scores are never held for the whole sequence: queries go in blocks, and a window block meets only the keys that it can
see, so time and memory of a window layer grow with T · window, not with T².
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import npu
from .kernels import Kernel, sdpa
from .positions import Positions
from .ragged import Ragged
from .reference import attention_reference

__all__ = ["Positions", "attention", "attention_reference", "ragged_attention", "sdpa"]

_BLOCK = 1024  # queries at once: a mask block of 32,768 keys is then 32 MiB


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
        k, v: [batch, S, kv_heads, head_dim]; heads is a multiple of kv_heads. Values must be finite even where
            nobody looks.
        positions: who sees whom; None: the queries are the last T of S tokens in order, without padding.
        window: keys visible to a query, its own included; None: all before it.
        scale: of the scores; head_dim^-0.5 by default.
        kernel: computes one block.

    Returns:
        [batch, T, heads, head_dim]; zeros for a query that sees no key.

    Raises:
        ValueError: heads is not a multiple of kv_heads.
    """
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"{q.shape[2]} query heads cannot share {k.shape[2]} key/value heads: give a multiple")
    if 0 in (*q.shape[:2], k.shape[1]):
        return torch.zeros_like(q)
    queries, keys = q.shape[1], k.shape[1]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if q.device.type == "npu":
        out = npu.attend(q, k, v, positions, window, scale)
        if out is not None:
            return out
        kernel = npu.compose
    if window is not None and window >= keys and positions is None:
        window = None
    if positions is None and window is None and queries in (1, keys):
        return kernel(q, k, v, None, queries > 1, scale)
    aligned = positions is None or positions.in_order
    reach = window if positions is None or positions.gapless else None
    who = positions or Positions.aligned(queries, keys, q.device)
    outputs = []
    for start in range(0, queries, _BLOCK):
        rows = slice(start, min(start + _BLOCK, queries))
        columns = _reachable(rows, keys - queries, reach) if aligned else slice(0, keys)
        # A single query that is last in order sees every key left: no mask, the fast kernel.
        mask = None if positions is None and queries == 1 else who.mask(window, rows, columns)
        outputs.append(kernel(q[:, rows], k[:, columns], v[:, columns], mask, False, scale))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


def ragged_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_ends: list[int],
    key_ends: list[int],
    *,
    window: int | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attend in sequences laid end to end, without gradients: prefill whose keys are at hand, in order.

    Args:
        q: [T, heads, head_dim].
        k, v: [S, kv_heads, head_dim].
        query_ends, key_ends: cumulative lengths; the queries of a sequence are the last of its keys.
        window, scale: as for ``attention``.

    Returns:
        [T, heads, head_dim].
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if q.device.type == "npu" and npu.takes(q, k.shape[1]):
        return npu.infer(q, k, v, Ragged(None, None, query_ends, key_ends), window, scale)
    outputs, row, column = [], 0, 0
    for row_end, column_end in zip(query_ends, key_ends, strict=True):
        keys, values = k[None, column:column_end], v[None, column:column_end]
        outputs.append(attention(q[None, row:row_end], keys, values, window=window, scale=scale)[0])
        row, column = row_end, column_end
    return torch.cat(outputs) if outputs else torch.zeros_like(q)


def _reachable(rows: slice, offset: int, window: int | None) -> slice:
    """Keys that queries ``rows`` can see when query i stands at key offset + i."""
    first = 0 if window is None else max(0, rows.start + offset - window + 1)
    return slice(first, rows.stop + offset)
