"""The short convolution's Triton kernels on an accelerator: tensors to launches. An NPU, and likewise a GPU.

Importing this does not need triton; calling ``forward`` and ``backward`` does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..launch import DTYPES, launch, log_composition, power_of_two_divisor, programs, why_not_triton
from . import kernels

# k and v of a token, in tiles of at most so many heads: the gradient keeps ten float32 tiles within an NPU core's
# 192 KiB of memory.
_TILE_HEADS, _TILE_HEADS_BACKWARD = 16, 8


def why_composed(kv: Tensor) -> str | None:
    """The reason why these inputs cannot go to the kernels; None if they can."""
    if kv.dtype not in DTYPES:
        return f"no kernel for {kv.dtype}"
    if kv.shape[-1] & (kv.shape[-1] - 1) or kv.shape[-1] < 2:
        return f"no kernel for a head_dim of {kv.shape[-1]}, only for powers of two"
    return why_not_triton("short_conv", kv.device.type)


def forward(kv: Tensor, weight: Tensor, state: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """See ``ascend_m1_ops.short_conv``; no data comes to the host."""
    from .triton import short_conv_kernel

    kv = _rows(kv)
    out, after = torch.empty(kv.shape, dtype=kv.dtype, device=kv.device), torch.empty_like(state).contiguous()
    heads, block = _tiles(kv, _TILE_HEADS)
    arguments = (kv, weight.contiguous(), state.contiguous(), cu_seqlens.contiguous(), out, after)
    launch(
        short_conv_kernel, _grid(kv, state), kv.device, *arguments, kv.shape[0], state.shape[0], kv.stride(0),
        heads=heads, head_dim=kv.shape[-1], block=block,
    )  # fmt: skip
    return out, after


def backward(
    grad: Tensor, grad_after: Tensor, kv: Tensor, weight: Tensor, state: Tensor, cu_seqlens: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of kv, weight and state; the taps' sums are one float32 number for each program, added by torch."""
    from .triton import short_conv_backward_kernel

    kv, state = _rows(kv), state.contiguous()
    grid, (heads, block) = _grid(kv, state), _tiles(kv, _TILE_HEADS_BACKWARD)
    grad_kv, grad_state = torch.empty(kv.shape, dtype=kv.dtype, device=kv.device), torch.empty_like(state)
    sums = torch.empty(grid, 2, heads, dtype=torch.float32, device=kv.device)
    tensors = (grad, grad_after, kv, weight, state, cu_seqlens)
    contiguous = (tensor if tensor is kv else tensor.contiguous() for tensor in tensors)
    launch(
        short_conv_backward_kernel, grid, kv.device, *contiguous, grad_kv, grad_state, sums,
        kv.shape[0], state.shape[0], kv.stride(0), heads=heads, head_dim=kv.shape[-1], block=block,
    )  # fmt: skip
    grad_weight = sums.sum(0).view(2, 2, kv.shape[2]).permute(1, 2, 0)  # [tap, k or v, head] -> [k or v, head, tap]
    return grad_kv, grad_weight.to(kv.dtype).contiguous(), grad_state


def forward_or_composition(kv: Tensor, weight: Tensor, state: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """The kernel where it can run, else torch calls."""
    reason = why_composed(kv)
    if reason is None:
        return forward(kv, weight, state, cu_seqlens)
    log_composition("short_conv", kv.device.type, reason)
    return kernels.forward(kv, weight, state, cu_seqlens)


def backward_or_composition(
    grad: Tensor, grad_after: Tensor, kv: Tensor, weight: Tensor, state: Tensor, cu_seqlens: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The kernel where it can run, else torch calls."""
    reason = why_composed(kv)
    if reason is None:
        return backward(grad, grad_after, kv, weight, state, cu_seqlens)
    log_composition("short_conv_backward", kv.device.type, reason)
    return kernels.backward(grad, grad_after, kv, weight, state, cu_seqlens)


def _rows(kv: Tensor) -> Tensor:
    """kv itself if only its rows are strided, else a copy."""
    kv_heads, head_dim = kv.shape[2:]
    return kv if kv.stride()[1:] == (kv_heads * head_dim, head_dim, 1) else kv.contiguous()


def _grid(kv: Tensor, state: Tensor) -> int:
    """Programs: no more than rows or sequences to work on."""
    return min(programs(kv.device), max(kv.shape[0], state.shape[0]))


def _tiles(kv: Tensor, at_most: int) -> tuple[int, int]:
    """Heads of k and v together, and heads in one tile."""
    heads = 2 * kv.shape[2]
    return heads, power_of_two_divisor(heads, at_most)
