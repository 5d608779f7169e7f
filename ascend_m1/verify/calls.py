"""The calls of verify-npu's cases, on the device of their inputs; see ``cases.py``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import ascend_m1_ops as ops
from ascend_m1_ops import PagedKeys, Positions, TokenTable

THETA, POSITIONS = 1e4, 50
LABELS = (5, 700, -100, 0, 767, 31)
DOCUMENTS = ((0, 0, 0, 0, 0, 1, 1, 1, 1), (0, 0, 0, 1, 1, 1, 1, 1, 1))
RATE, BETAS, DECAY = 1e-2, (0.9, 0.95), 0.1
_BLOCKS = ((3, 1), (4, 0))  # of two sequences: which blocks of the cache hold their keys


def single(function: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    """A function of one result as one of several."""

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        return (function(*tensors),)

    return call


def tables(like: Tensor, positions: Sequence[int] | None = None, head_dim: int | None = None) -> tuple[Tensor, Tensor]:
    """RoPE's float32 tables on the device of a tensor; in float64 the same rounded numbers."""
    where = torch.arange(POSITIONS) if positions is None else torch.tensor(positions)
    wide = torch.promote_types(like.dtype, torch.float32)
    cos, sin = ops.rope_tables(where, head_dim or like.shape[-1], THETA)
    return cos.to(like.device, wide), sin.to(like.device, wide)


def borders(lengths: Sequence[int], device: torch.device) -> Tensor:
    """cu_seqlens, int32."""
    return torch.tensor([0, *lengths]).cumsum(0).int().to(device)


def rope(x: Tensor) -> tuple[Tensor, ...]:
    return (ops.apply_rope(x, *tables(x, range(20, 20 + x.shape[0]))),)


def head(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    return (ops.norm_head(x, weight, ops.inverse_row_norm(weight)),)


def whole_numbers(weight: Tensor, scales: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Numbers of so many bits, and scales above zero, from random numbers: exact in every dtype."""
    numbers = (weight * (32 if bits == 8 else 2)).round().clamp(1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1)
    return numbers.to(torch.int8), scales.abs()


def quantised(x: Tensor, weight: Tensor, scales: Tensor, *, bits: int) -> tuple[Tensor, ...]:
    numbers, scales = whole_numbers(weight.cpu(), scales.cpu(), bits)
    return (ops.quant_linear(x, ops.prepare(numbers.to(x.device), scales.to(x.device), bits)),)


def loss(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    labels = torch.tensor(LABELS, device=x.device)
    return (ops.norm_head_loss(x, weight, ops.inverse_row_norm(weight), labels, chunk=4),)


def short_conv(kv: Tensor, weight: Tensor, state: Tensor) -> tuple[Tensor, ...]:
    return ops.short_conv(kv, weight, state, borders((4, 0, 3), kv.device))


def token_table(lengths: Sequence[int], device: torch.device) -> TokenTable:
    """Sequences in shuffled rows and slots; the second begins afresh."""
    count = sum(lengths)
    positions, slots = torch.arange(7, 7 + count), torch.arange(250, 250 - 31 * count, -31)
    rows, continues = torch.tensor([2, 0, 3]), torch.tensor([1, 0, 1])
    numbers = [tensor.int().to(device) for tensor in (positions, slots, rows, continues)]
    return TokenTable.prefill(lengths, *numbers)


def fused(
    packed: Tensor, weight: Tensor, k_cache: Tensor, v_cache: Tensor, state: Tensor, *, lengths: Sequence[int]
) -> tuple[Tensor, ...]:
    cos, sin = tables(packed, head_dim=k_cache.shape[-1])
    k_cache, v_cache, state = k_cache.clone(), v_cache.clone(), state.clone()
    table = token_table(lengths, packed.device)
    q = ops.conv_rope_cache(packed, weight, cos, sin, table, k_cache, v_cache, state)
    return q, k_cache, v_cache, state


def attention(q: Tensor, k: Tensor, v: Tensor, *, window: int | None) -> tuple[Tensor, ...]:
    return (ops.attention(q, k, v, window=window),)


def packed_positions(device: torch.device) -> Positions:
    """Two rows of two documents each."""
    documents = torch.tensor(DOCUMENTS, device=device)
    place = torch.tensor([[row[: i + 1].count(d) - 1 for i, d in enumerate(row)] for row in DOCUMENTS], device=device)
    return Positions(place, place, documents, documents, in_order=True, gapless=True)


def packed_attention(q: Tensor, k: Tensor, v: Tensor, *, window: int | None) -> tuple[Tensor, ...]:
    return (ops.attention(q, k, v, packed_positions(q.device), window=window),)


def block_table(device: torch.device) -> Tensor:
    return torch.tensor(_BLOCKS, dtype=torch.int32, device=device)


def paged_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, *, queries: Sequence[int], lengths: Sequence[int]
) -> tuple[Tensor, ...]:
    ends = None if set(queries) == {1} else [sum(queries[: i + 1]) for i in range(len(queries))]
    keys = PagedKeys(block_table(q.device), list(lengths))
    return (ops.paged_attention(q, k_cache, v_cache, keys, query_ends=ends),)


def adamw(weight: Tensor, gradient: Tensor) -> tuple[Tensor, ...]:
    """Two steps; the state is of the weight's dtype."""
    parameter = torch.nn.Parameter(weight.clone())
    optimizer = torch.optim.AdamW([parameter], lr=RATE, betas=BETAS, weight_decay=DECAY, fused=True)
    for _ in range(2):
        parameter.grad = gradient.clone()
        optimizer.step()
    return (parameter.detach(),)
