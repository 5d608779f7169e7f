"""The fused operator's Triton kernel on an accelerator: tensors to one launch. An NPU, and likewise a GPU.

Importing this does not need triton; calling ``forward`` does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..launch import DTYPES, launch, log_composition, power_of_two_divisor, programs, why_not_triton
from . import kernels
from .tokens import TokenTable

_TILE_HEADS = 8


def why_composed(packed: Tensor, cos: Tensor, k_cache: Tensor) -> str | None:
    """The reason why these inputs cannot go to the kernel; None if they can."""
    head_dim = k_cache.shape[-1]
    if packed.dtype not in DTYPES or cos.dtype != torch.float32:
        return f"no kernel for {packed.dtype} with tables of {cos.dtype}"
    if head_dim & (head_dim - 1) or head_dim < 4:
        return f"no kernel for a head_dim of {head_dim}, only for powers of two"
    return why_not_triton("conv_rope_cache", packed.device.type)


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
    """See ``ascend_m1_ops.conv_rope_cache``; no data comes to the host."""
    from .triton import conv_rope_cache_kernel

    block_size, kv_heads, head_dim = k_cache.shape[1:]
    tokens, heads = packed.shape[0], packed.shape[1] // head_dim - 2 * kv_heads
    q = torch.empty(tokens, heads, head_dim, dtype=packed.dtype, device=packed.device)
    inputs = (weight, cos, sin, *table.tensors())
    strides = (packed.stride(0), *k_cache.stride()[:2], *v_cache.stride()[:2], state.stride(0))
    launch(
        conv_rope_cache_kernel, min(tokens, programs(packed.device)), packed.device,
        packed, *(tensor.contiguous() for tensor in inputs), k_cache, v_cache, state, q, tokens, *strides,
        heads=heads, kv_heads=kv_heads, half=head_dim // 2, block_size=block_size,
        q_block=power_of_two_divisor(heads, _TILE_HEADS), kv_block=power_of_two_divisor(kv_heads, _TILE_HEADS),
    )  # fmt: skip
    return q


def forward_or_composition(
    packed: Tensor,
    weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    table: TokenTable,
    k_cache: Tensor,
    v_cache: Tensor,
    state: Tensor,
) -> Tensor:
    """The kernel where it can run, else torch calls."""
    arguments = (packed, weight, cos, sin, table, k_cache, v_cache, state)
    reason = why_composed(packed, cos, k_cache)
    if reason is None:
        return forward(*arguments)
    log_composition("conv_rope_cache", packed.device.type, reason)
    return kernels.forward(*arguments)
