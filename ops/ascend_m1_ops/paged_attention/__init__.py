"""Attention over a paged cache: prefill of whole prompts or chunks, and decode steps.

    out_i = Σ_j softmax_j(q_i · k_j · scale) v_j        over the keys j of i's sequence up to i's own position

K and V [blocks, block_size, KV, D] hold the keys of sequence s in the blocks block_table[s], in order. A decode step
has one query a sequence and sees every key, so their order does not matter: a ring of exactly ``window`` slots is a
window layer's cache (softmax ignores order, RoPE is already in K). Source: Kwon et al., "PagedAttention" (2023).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..attention import npu as attention_npu
from . import npu
from .kernels import decode, decode_each, prefill
from .reference import paged_attention_reference

__all__ = ["PagedKeys", "lengths_on_host", "paged_attention", "paged_attention_reference"]


@dataclass(frozen=True)
class PagedKeys:
    """Where the keys of each sequence lie.

    Attributes:
        block_table: int32 [sequences, n], blocks in order; what lies beyond the length is not read.
        lengths: keys of each sequence, its new tokens included.
        device_lengths: the same on the device, int32 or int64 [sequences]. A graph whose lengths change from step to
            step has them, for decode steps; a graph that nobody can tell new ``lengths`` has only them.
    """

    block_table: Tensor
    lengths: list[int] | None = None
    device_lengths: Tensor | None = None


def lengths_on_host(q: Tensor, kv_heads: int) -> bool:
    """Whether attention of such queries [..., heads, head_dim] takes lengths as numbers, outside a CANN graph."""
    return q.device.type == "npu" and attention_npu.takes(q, kv_heads, "paged_attention")


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    keys: PagedKeys,
    *,
    query_ends: list[int] | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attend.

    Args:
        q: [T, heads, head_dim], the queries of all sequences end to end.
        k_cache, v_cache: [blocks, block_size, kv_heads, head_dim], with the keys of these queries already written.
        keys: where each sequence's keys lie.
        query_ends: cumulative count of queries; those of a sequence are its last. None: a decode step, one each.
        scale: of the scores; head_dim^-0.5 by default.

    Returns:
        [T, heads, head_dim].

    Raises:
        ValueError: head counts, or the count of queries and sequences, do not fit.
    """
    if q.shape[1] % k_cache.shape[2]:
        raise ValueError(f"{q.shape[1]} query heads cannot share {k_cache.shape[2]} key/value heads: give a multiple")
    sequences = keys.block_table.shape[0]
    if (query_ends is None and q.shape[0] != sequences) or (query_ends is not None and len(query_ends) != sequences):
        raise ValueError(
            f"block_table has {sequences} sequences: give as many queries in a decode step, else as many ends"
        )
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    host, device = keys.lengths, keys.device_lengths
    if host is None and (query_ends is not None or device is None):
        raise ValueError("lengths must be given, unless it is a decode step with device_lengths")
    if lengths_on_host(q, k_cache.shape[2]):
        return npu.attend(q, k_cache, v_cache, keys.block_table, host or device, query_ends, scale)
    if query_ends is None and host is not None and q.device.type == "cpu":
        return decode_each(q, k_cache, v_cache, keys.block_table, host, scale)
    if query_ends is None:
        return decode(q, k_cache, v_cache, keys.block_table, host if device is None else device, scale)
    return prefill(q, k_cache, v_cache, keys.block_table, host or [], query_ends, scale)
