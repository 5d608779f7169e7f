"""Paged attention of plain torch operators, on any device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..attention import attention
from ..blocks import widened
from ..native import step


def decode_each(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor, lengths: list[int], scale: float
) -> Tensor:
    """One query a sequence, sequence by sequence: for a CPU, where launches are cheap and copies are not."""
    fits = lengths and block_table.dtype == torch.int32 and min(lengths) > 0
    fits = fits and max(lengths) <= block_table.shape[1] * k_cache.shape[1] and len(lengths) == q.shape[0]
    if fits and step.takes(q) and step.takes_cache(*q.shape[1:], k_cache, v_cache, block_table):
        return step.paged_attention(q, k_cache, v_cache, block_table, lengths, scale)
    # The heads of a group as rows of one matrix: K and V are read once.
    rows = q.unflatten(1, (k_cache.shape[2], -1)).split(1)
    outputs, size = [], k_cache.shape[1]
    for query, blocks, length in zip(rows, block_table.tolist(), lengths, strict=True):
        used = blocks[: -(-length // size)]
        keys, values = (_in_order(cache, used, length).transpose(1, 2) for cache in (k_cache, v_cache))
        outputs.append(scaled_dot_product_attention(query, keys, values, scale=scale))
    return torch.cat(outputs).flatten(1, 2) if outputs else torch.zeros_like(q)


def _in_order(cache: Tensor, blocks: list[int], length: int) -> Tensor:
    """[1, length, KV, D] of the first tokens of some blocks; of a single one without a copy."""
    if len(blocks) == 1:
        return cache.narrow(0, blocks[0], 1).narrow(1, 0, length)
    return cache[blocks].flatten(0, 1)[None, :length]


def decode(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor, lengths: list[int] | Tensor | None, scale: float
) -> Tensor:
    """One query a sequence: all sequences at once over gathered blocks, keys beyond a length masked.

    With lengths on the device, shapes do not depend on them, so that a compiled step serves every one.
    """
    assert lengths is not None
    if not isinstance(lengths, Tensor):
        block_table = block_table[:, : -(-max(lengths) // k_cache.shape[1])]
        lengths = torch.tensor(lengths, device=q.device)
    keys, values = (cache[block_table.long()].flatten(1, 2) for cache in (k_cache, v_cache))  # [B, S, KV, D]
    group = q.shape[1] // k_cache.shape[2]
    rows = q.unflatten(1, (-1, group))  # the heads of a group as rows of one matrix: K and V are read once
    visible = torch.arange(keys.shape[1], dtype=lengths.dtype, device=q.device) < lengths.unsqueeze(1)
    # What was never written may be anything, NaN too.
    values = values.masked_fill(~visible[:, :, None, None], 0.0)
    scores = (widened(rows) * scale) @ widened(keys).permute(0, 2, 3, 1)  # see ``attention.npu.compose``
    weights = scores.masked_fill(~visible[:, None, None], float("-inf")).softmax(-1)
    out: Tensor = weights.to(q.dtype) @ values.transpose(1, 2)
    return out.flatten(1, 2)


def prefill(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    lengths: list[int],
    query_ends: list[int],
    scale: float,
) -> Tensor:
    """Sequence by sequence, each over its own keys."""
    outputs, start, size = [], 0, k_cache.shape[1]
    for row, (length, end) in enumerate(zip(lengths, query_ends, strict=True)):
        blocks = block_table[row, : -(-length // size)].long()
        keys, values = (cache[blocks].flatten(0, 1)[None, :length] for cache in (k_cache, v_cache))
        outputs.append(attention(q[None, start:end], keys, values, scale=scale)[0])
        start = end
    return torch.cat(outputs) if outputs else torch.zeros_like(q)
