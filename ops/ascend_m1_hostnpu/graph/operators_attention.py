"""FusedInferAttentionScore over a paged cache, under the rules of the kernel that answers grouped heads."""

from __future__ import annotations

import torch
from torch import Tensor

from .registry import operator

UNLIMITED = 2147483647
MASK = (2048, 2048)


@operator("FusedInferAttentionScore", lists=("key", "value"))
def fused_infer_attention_score(
    query: Tensor,
    key: list[Tensor],
    value: list[Tensor],
    actual_seq_lengths: Tensor,
    actual_seq_lengths_kv: Tensor,
    block_table: Tensor,
    num_heads: int,
    scale: float,
    num_key_value_heads: int,
    block_size: int,
    input_layout: str,
    atten_mask: Tensor | None = None,
    sparse_mode: int = 0,
    pre_tokens: int = UNLIMITED,
    next_tokens: int = UNLIMITED,
    **unused: int | bool,
) -> tuple[Tensor, Tensor]:
    """(attention of packed queries over paged keys, empty lse).

    query [T, H, D]; key[0], value[0] [blocks, block_size, KV·D]; actual_seq_lengths int64 [S], cumulative;
    actual_seq_lengths_kv int64 [S], of each sequence; block_table int32 [S, pages]. Sparse mode 0 shows every key, 3
    the causal triangle, 4 the last pre_tokens + 1 keys of it; both aligned at the end of the sequence. Products are
    float32, the result is rounded once.

    Raises:
        ValueError, NotImplementedError: where 910B and A3 refuse the call or define no result.
    """
    for name, setting in unused.items():
        if setting:
            raise NotImplementedError(f"{name}={setting} is not answered")
    keys, values = key[0], value[0]
    tokens, _, dim = query.shape
    kv_heads = num_key_value_heads or num_heads
    _check_layout(query, keys, values, num_heads, kv_heads, block_size, input_layout)
    _check_mask(atten_mask, sparse_mode, pre_tokens, next_tokens)
    ends, lengths = actual_seq_lengths.tolist(), actual_seq_lengths_kv.tolist()
    if len(ends) != len(lengths) or len(ends) != block_table.shape[0] or (ends and ends[-1] != tokens):
        raise ValueError(
            f"{len(ends)} query and {len(lengths)} key lengths, table {tuple(block_table.shape)}, T {tokens}"
        )
    out = torch.zeros_like(query)
    start = 0
    for sequence, (end, length) in enumerate(zip(ends, lengths, strict=True)):
        pages = block_table[sequence, : -(-length // block_size)].long()
        if len(pages) * block_size < length:
            raise ValueError(f"sequence {sequence} has {length} keys, its block table {block_table.shape[1]} pages")
        if end > start and length:
            seen_keys, seen_values = (side[pages].reshape(-1, kv_heads, dim)[:length] for side in (keys, values))
            visible = _visible(end - start, length, sparse_mode, pre_tokens)
            rows = _attend(query[start:end], seen_keys, seen_values, scale, visible)
            out[start:end] = rows.to(out.dtype)
        start = end
    return out, torch.zeros(0)


def _check_layout(
    query: Tensor, keys: Tensor, values: Tensor, heads: int, kv_heads: int, block_size: int, layout: str
) -> None:
    dim = query.shape[-1]
    if layout != "TND":
        raise NotImplementedError(f"input_layout {layout}; only TND is answered")
    if query.dtype not in (torch.float16, torch.bfloat16) or not query.dtype == keys.dtype == values.dtype:
        raise ValueError(
            f"query {query.dtype}, key {keys.dtype}, value {values.dtype}; wanted one of float16, bfloat16"
        )
    if query.shape[1] != heads or heads % kv_heads or dim > 256:
        raise ValueError(f"query {tuple(query.shape)}, {heads} heads over {kv_heads}; head_dim at most 256")
    if block_size % 16 or not 0 < block_size <= 512:
        raise ValueError(f"block_size {block_size}; wanted a multiple of 16 up to 512")
    for name, side in (("key", keys), ("value", values)):
        if side.dim() != 3 or side.shape[1:] != (block_size, kv_heads * dim):
            raise ValueError(f"{name} cache {tuple(side.shape)}; wanted [blocks, {block_size}, {kv_heads * dim}]")


def _check_mask(mask: Tensor | None, sparse_mode: int, pre_tokens: int, next_tokens: int) -> None:
    if sparse_mode not in (0, 3, 4):
        raise NotImplementedError(f"sparse_mode {sparse_mode}; 0, 3 and 4 are answered")
    if (mask is not None) != (sparse_mode in (3, 4)) or (mask is not None and mask.shape[-2:] != MASK):
        raise ValueError(f"sparse_mode {sparse_mode}: a mask of {MASK} exactly with modes 3 and 4")
    if sparse_mode == 4 and (pre_tokens < 0 or next_tokens != 0):
        raise NotImplementedError(f"band of pre_tokens {pre_tokens}, next_tokens {next_tokens}; next_tokens must be 0")


def _visible(queries: int, keys: int, sparse_mode: int, pre_tokens: int) -> Tensor:
    distance = torch.arange(queries)[:, None] + keys - queries - torch.arange(keys)[None]
    if sparse_mode == 0:
        return torch.ones_like(distance, dtype=torch.bool)
    band = pre_tokens if sparse_mode == 4 else UNLIMITED
    return (distance >= 0) & (distance <= band)


def _attend(query: Tensor, keys: Tensor, values: Tensor, scale: float, visible: Tensor) -> Tensor:
    group = query.shape[1] // keys.shape[1]
    keys, values = (side.float().repeat_interleave(group, 1) for side in (keys, values))
    scores = torch.einsum("thd,shd->hts", query.float(), keys) * scale
    weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
    return torch.einsum("hts,shd->thd", weights, values)
