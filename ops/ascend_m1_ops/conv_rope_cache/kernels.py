"""The fused operator composed of the others: on a CPU, and wherever its Triton kernel cannot run.

The same bits as ``short_conv``, ``apply_rope`` and a cache write one after the other. Which sequences are empty and
which slots are padding is read on the host, so a device is waited for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..rope import apply_rope
from ..short_conv import kernels as short_conv


def forward(
    packed: Tensor,
    weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    slots: Tensor,
    starts: Tensor,
    cu_seqlens: Tensor,
    state_rows: Tensor,
    continues: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    state: Tensor,
) -> Tensor:
    """See ``ascend_m1_ops.conv_rope_cache``; ``starts`` says nothing that ``cu_seqlens`` does not."""
    block_size, kv_heads, head_dim = k_cache.shape[1:]
    rows = packed.unflatten(1, (-1, head_dim))
    kv = rows[:, -2 * kv_heads :].unflatten(1, (2, kv_heads))
    convolved, after = short_conv.forward(kv, weight, _state_before(state, state_rows, continues), cu_seqlens)
    cos, sin = cos.index_select(0, positions), sin.index_select(0, positions)
    k, v = apply_rope(convolved[:, 0], cos, sin), convolved[:, 1]
    stored = (slots >= 0).nonzero().squeeze(1)
    if stored.shape[0] < slots.shape[0]:
        slots, k, v = slots[stored], k[stored], v[stored]
    page, place = slots // block_size, slots % block_size
    k_cache.index_put_((page, place), k)
    v_cache.index_put_((page, place), v)
    remembered = ((state_rows >= 0) & (cu_seqlens.diff() > 0)).nonzero().squeeze(1)
    state.index_copy_(0, state_rows[remembered].long(), after[remembered])
    return apply_rope(rows[:, : -2 * kv_heads], cos, sin).contiguous()


def _state_before(state: Tensor, rows: Tensor, continues: Tensor) -> Tensor:
    """Raw k and v before each sequence [sequences, 2, kv_heads, head_dim]: its row of the state, or zeros."""
    known = (rows >= 0) & (continues != 0)
    if state.shape[0] == 0:
        return state.new_zeros(rows.shape[0], *state.shape[1:])
    return torch.where(known[:, None, None, None], state[rows.clamp(min=0).long()], 0)
