"""Attention on an NPU: the vendor's fused operators on ragged rows (layout TND), or plain products.

Rules that decide the form (docs/npu.md has them with their sources): head_dim 256 is taken in TND only; a window is a
band, sparse_mode 4 with pre_tokens = window - 1; a decode step whose keys are all visible needs no mask
(sparse_mode 0), which keeps the fast decode kernels.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..blocks import gradient_wanted, widened
from ..products.npu import chosen
from .positions import Positions
from .ragged import Ragged, find_ragged, whole_rows

_NO_LIMIT = 2147483647
_UNGROUPED = (64, 128, 192)
_MASK = 2048  # the operators take a compressed triangle of this size
_SEQUENCES = 2048  # that npu_fusion_attention takes at once


def takes(q: Tensor, kv_heads: int, step: str = "attention") -> bool:
    """Whether the vendor's inference operator computes ``step`` for q [..., heads, head_dim] on this product.

    Layout TND has two kernels: one for grouped heads up to head_dim 256, one for a few sizes of head_dim.
    """
    heads, head_dim = q.shape[-2:]
    fits = head_dim <= 256 if heads > kv_heads else head_dim in _UNGROUPED
    return bool(fits and chosen(step, q.dtype) != "composition")


def attend(
    q: Tensor, k: Tensor, v: Tensor, positions: Positions | None, window: int | None, scale: float
) -> Tensor | None:
    """See ``ascend_m1_ops.attention``; None: no vendor operator takes this call, compose it."""
    training = gradient_wanted(q, k, v)
    if not (chosen("attention_training", q.dtype) != "composition" if training else takes(q, k.shape[2])):
        return None
    ragged = _ragged(q, k, positions, window)
    if ragged is None:
        return None
    rows = _rows(q, ragged.queries), _rows(k, ragged.keys), _rows(v, ragged.keys)
    out = (train if training else infer)(*rows, ragged, window, scale)
    if ragged.queries is None:
        return out.view(q.shape)
    # Not index_copy: the vendor's pages list aclnnIndexCopy for A2 and A3 only.
    return torch.zeros_like(q).flatten(0, 1).index_put((ragged.queries,), out).view(q.shape)


def _ragged(q: Tensor, k: Tensor, positions: Positions | None, window: int | None) -> Ragged | None:
    if positions is None:
        if q.shape[1] == 1 and window is not None and k.shape[1] > window:
            return _tail(q.shape[0], k.shape[1], window, k.device)
        return whole_rows(q.shape[0], q.shape[1], k.shape[1])
    return positions.once(("ragged", window, len(q)), lambda: find_ragged(positions, window, len(q)))


def _tail(batch: int, keys: int, window: int, device: torch.device) -> Ragged:
    """A decode step over full caches in order: the last ``window`` keys of each row."""
    rows = torch.arange(batch, device=device).unsqueeze(1) * keys
    index = (rows + torch.arange(keys - window, keys, device=device)).flatten()
    return Ragged(None, index, list(range(1, batch + 1)), [window * i for i in range(1, batch + 1)])


def _rows(x: Tensor, index: Tensor | None) -> Tensor:
    flat = x.flatten(0, 1)
    return flat.contiguous() if index is None else flat.index_select(0, index)


def _sparse(ragged: Ragged, window: int | None) -> tuple[int, int, int]:
    """sparse_mode, pre_tokens, next_tokens."""
    if window is not None and ragged.longest > window:
        return 4, window - 1, 0
    return (0, _NO_LIMIT, _NO_LIMIT) if ragged.single_queries else (3, _NO_LIMIT, 0)


def infer(q: Tensor, k: Tensor, v: Tensor, ragged: Ragged, window: int | None, scale: float) -> Tensor:
    """q [T, H, D], k and v [S, KV, D], already in the order of ``ragged``."""
    import torch_npu

    sparse, before, after = _sparse(ragged, window)
    out: Tensor = torch_npu.npu_fused_infer_attention_score_v2(
        q,
        k,
        v,
        atten_mask=None if sparse == 0 else triangle(q.device),
        actual_seq_qlen=ragged.query_ends,
        actual_seq_kvlen=ragged.key_ends,
        num_query_heads=q.shape[1],
        num_key_value_heads=k.shape[1],
        softmax_scale=scale,
        pre_tokens=before,
        next_tokens=after,
        input_layout="TND",
        sparse_mode=sparse,
    )[0]
    return out


def train(q: Tensor, k: Tensor, v: Tensor, ragged: Ragged, window: int | None, scale: float) -> Tensor:
    """``infer`` with gradients."""
    parts = ragged.parts(_SEQUENCES)
    outputs = [_fusion(q[rows], k[columns], v[columns], part, window, scale) for rows, columns, part in parts]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _fusion(q: Tensor, k: Tensor, v: Tensor, ragged: Ragged, window: int | None, scale: float) -> Tensor:
    import torch_npu

    band = window is not None and ragged.longest > window
    out: Tensor = torch_npu.npu_fusion_attention(
        q,
        k,
        v,
        q.shape[1],
        "TND",
        atten_mask=triangle(q.device),
        scale=scale,
        pre_tockens=window - 1 if band and window else _NO_LIMIT,
        next_tockens=0,
        actual_seq_qlen=ragged.query_ends,
        actual_seq_kvlen=ragged.key_ends,
        sparse_mode=4 if band else 3,
    )[0]
    return out


@lru_cache(maxsize=16)
def triangle(device: torch.device) -> Tensor:
    """The compressed causal mask of sparse modes 3 and 4: 1 hides."""
    with torch.inference_mode(False):
        return torch.ones(_MASK, _MASK, dtype=torch.bool).triu_(1).to(device)


def compose(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    """A ``Kernel`` of plain products and a float32 softmax, for dtypes and products without a fused operator.

    The scores are float32 products: in 16 bits they overflow, and a large one is off by several times its weight's
    rounding. q is scaled before them, for 310P computes a float32 product in float16.
    """
    batch, queries, heads, head_dim = q.shape
    kv_heads = k.shape[2]
    rows = q.unflatten(2, (kv_heads, -1)).permute(0, 2, 3, 1, 4)  # [B, KV, group, T, D]
    keys, values = (x.permute(0, 2, 1, 3).unsqueeze(2) for x in (k, v))
    scores = (widened(rows) * scale) @ widened(keys).transpose(-1, -2)
    visible: Any = mask
    if causal:
        visible = torch.ones(queries, queries, dtype=torch.bool, device=q.device).tril()
    elif mask is not None:
        visible = mask.unsqueeze(2)
    if visible is not None:
        scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1)
    if visible is not None:
        weights = weights.masked_fill(~visible, 0.0)  # a query that sees no key gives zeros
    out: Tensor = weights.to(q.dtype) @ values
    return out.permute(0, 3, 1, 2, 4).reshape(batch, queries, heads, head_dim)
