"""The fused operator composed of the others: on a CPU, and wherever its Triton kernel cannot run.

A CPU's decode step in bfloat16 is compiled (``native.step``). Else the same bits as ``short_conv``, ``apply_rope`` and
a cache write one after the other. Which sequences are empty and which slots are padding is read on the host, so a
device is waited for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..native import step
from ..rope import apply_rope
from ..short_conv import kernels, short_conv_step
from .tokens import TokenTable


def forward(
    packed: Tensor,
    weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    table: TokenTable,
    k_cache: Tensor,
    v_cache: Tensor,
    state: Tensor,
) -> Tensor:
    """See ``ascend_m1_ops.conv_rope_cache``; the table's ``starts`` says nothing that ``cu_seqlens`` does not."""
    positions, slots, _, cu_seqlens, state_rows, continues = table.tensors()
    block_size, kv_heads, head_dim = k_cache.shape[1:]
    borders = cu_seqlens.tolist()
    one_each = borders == list(range(packed.shape[0] + 1))  # decode
    tables = (cos, sin, positions, slots, state_rows, continues)
    heads = packed.shape[1] // head_dim - 2 * kv_heads
    if one_each and step.takes(packed, weight) and step.takes_cache(heads, head_dim, k_cache, v_cache, *tables):
        return step.conv_rope_cache(packed, weight, tables, k_cache, v_cache, state)
    rows = packed.unflatten(1, (-1, head_dim))
    kv = rows[:, -2 * kv_heads :].unflatten(1, (2, kv_heads))
    before = _state_before(state, state_rows, continues)
    if one_each:
        convolved, after = short_conv_step(kv, weight, before)
    else:
        convolved, after = kernels.forward(kv, weight, before, cu_seqlens)
        state_rows = torch.where(cu_seqlens.diff() > 0, state_rows, -1)
    cos, sin = cos.index_select(0, positions), sin.index_select(0, positions)
    slots, k, v = _kept(slots, apply_rope(convolved[:, 0], cos, sin), convolved[:, 1])
    place = (slots // block_size, slots % block_size)
    k_cache.index_put_(place, k)
    v_cache.index_put_(place, v)
    remembered, last = _kept(state_rows, after)
    state.index_put_((remembered,), last)
    return apply_rope(rows[:, : -2 * kv_heads], cos, sin).contiguous()


def _kept(index: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    """Without the entries whose index is negative."""
    if min(index.tolist(), default=0) >= 0:
        return index, *values
    kept = index >= 0
    return index[kept], *(value[kept] for value in values)


def _state_before(state: Tensor, rows: Tensor, continues: Tensor) -> Tensor:
    """Raw k and v before each sequence [sequences, 2, kv_heads, head_dim]: its row of the state, or zeros."""
    if min(rows.tolist(), default=0) >= 0 and all(continues.tolist()):
        return state.index_select(0, rows)
    known = (rows >= 0) & (continues != 0)
    return state.new_zeros(rows.shape[0], *state.shape[1:]).index_put_((known,), state[rows[known]])
