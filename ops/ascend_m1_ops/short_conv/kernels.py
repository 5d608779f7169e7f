"""``torch.ops.ascend_m1.short_conv``: schema, checks, kernel for every device, fake, autograd.

Low-precision rows are widened in blocks that stay in the processor's cache between the multiply, the add and the
rounding; float32 needs no widening and goes in one piece.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_BLOCK_ROWS = 64  # of the published 2 x 8 x 128 elements: 0.5 MiB in float32, inside the L2 of one core

_library = torch.library.Library("ascend_m1", "FRAGMENT")
_library.define("short_conv(Tensor kv, Tensor weight, Tensor state, Tensor cu_seqlens) -> (Tensor, Tensor)")
_library.define(
    "short_conv_backward(Tensor grad, Tensor grad_state, Tensor kv, Tensor weight, Tensor state, Tensor cu_seqlens)"
    " -> (Tensor, Tensor, Tensor)"
)


def _check(kv: Tensor, weight: Tensor, state: Tensor, cu_seqlens: Tensor) -> None:
    def need(condition: bool, message: str) -> None:
        torch._check(condition, lambda: f"short_conv: {message}")

    need(kv.dim() == 4 and kv.shape[1] == 2, f"kv must be [tokens, 2, kv_heads, head_dim], not {list(kv.shape)}")
    need(list(weight.shape) == [2, kv.shape[2], 2], f"weight must be [2, {kv.shape[2]}, 2], not {list(weight.shape)}")
    need(cu_seqlens.dim() == 1, f"cu_seqlens must be [sequences + 1], not {list(cu_seqlens.shape)}")
    want = [cu_seqlens.shape[0] - 1, *kv.shape[1:]]
    need(list(state.shape) == want, f"state must be {want}, not {list(state.shape)}")
    need(cu_seqlens.dtype in (torch.int32, torch.int64), f"cu_seqlens must be int32 or int64, not {cu_seqlens.dtype}")
    need(
        kv.dtype == weight.dtype == state.dtype,
        f"kv, weight and state must share a dtype, not {kv.dtype}, {weight.dtype}, {state.dtype}",
    )


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def _boundaries(cu_seqlens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the non-empty sequences, and the first and last token of each."""
    starts, ends = cu_seqlens[:-1].long(), cu_seqlens[1:].long()
    owners = (ends > starts).nonzero().squeeze(1)
    return owners, starts[owners], ends[owners] - 1


def _filter(rows: Tensor, previous_tap: Tensor, current_tap: Tensor, out: Tensor) -> Tensor:
    """All rows as one sequence, nothing before the first; sequence starts are set afterwards."""
    torch.mul(rows, current_tap, out=out)
    out[1:].addcmul_(rows[:-1], previous_tap)
    return out


def _forward(kv: Tensor, weight: Tensor, state: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    _check(kv, weight, state, cu_seqlens)
    wide = _wide(kv.dtype)
    previous_tap, current_tap = (tap.to(wide).unsqueeze(-1) for tap in weight.unbind(-1))
    out = torch.empty(kv.shape, dtype=kv.dtype, device=kv.device)
    if kv.dtype == wide:
        _filter(kv, previous_tap, current_tap, out)
    else:
        for start in range(0, kv.shape[0], _BLOCK_ROWS):
            lead = min(start, 1)  # a block needs the row before its first
            rows = kv[start - lead : start + _BLOCK_ROWS].to(wide)
            out[start : start + _BLOCK_ROWS] = _filter(rows, previous_tap, current_tap, torch.empty_like(rows))[lead:]
    owners, first_tokens, last_tokens = _boundaries(cu_seqlens)
    fresh = torch.addcmul(kv[first_tokens].to(wide) * current_tap, state[owners].to(wide), previous_tap)
    out.index_copy_(0, first_tokens, fresh.to(kv.dtype))
    new_state = state.clone(memory_format=torch.contiguous_format).index_copy_(0, owners, kv[last_tokens])
    return out, new_state


def _backward(
    grad: Tensor, grad_state: Tensor, kv: Tensor, weight: Tensor, state: Tensor, cu_seqlens: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """du_t = w[1]·g_t + w[0]·g_{t+1}; dw = Σ g_t·(u_{t-1}, u_t); a start's g_t goes to the state instead."""
    wide = _wide(kv.dtype)
    previous_tap, current_tap = (tap.to(wide).unsqueeze(-1) for tap in weight.unbind(-1))
    owners, first_tokens, last_tokens = _boundaries(cu_seqlens)
    wide_grad, wide_kv = grad.to(wide), kv.to(wide)
    carried = wide_grad.clone()  # what reaches the row before: nothing from the first row of a sequence
    carried.index_fill_(0, first_tokens, 0)
    grad_kv = wide_grad * current_tap
    grad_kv[:-1].addcmul_(carried[1:], previous_tap)
    grad_kv.index_add_(0, last_tokens, grad_state[owners].to(wide))
    first_grad = wide_grad[first_tokens]
    previous = torch.cat([torch.zeros_like(wide_kv[:1]), wide_kv[:-1]])[: kv.shape[0]]
    tap_previous = (carried * previous).sum((0, 3)) + (first_grad * state[owners].to(wide)).sum((0, 3))
    grad_weight = torch.stack([tap_previous, (wide_grad * wide_kv).sum((0, 3))], dim=-1)
    grad_previous = grad_state.clone()
    grad_previous.index_copy_(0, owners, (first_grad * previous_tap).to(kv.dtype))
    return grad_kv.to(kv.dtype), grad_weight.to(kv.dtype), grad_previous


def _forward_fake(kv: Tensor, weight: Tensor, state: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    _check(kv, weight, state, cu_seqlens)
    return kv.new_empty(kv.shape), state.new_empty(state.shape)


def _backward_fake(
    grad: Tensor, grad_state: Tensor, kv: Tensor, weight: Tensor, state: Tensor, cu_seqlens: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return kv.new_empty(kv.shape), weight.new_empty(weight.shape), state.new_empty(state.shape)


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)


def _autograd(ctx: Any, grad: Tensor, grad_state: Tensor) -> tuple[Tensor | None, ...]:
    grads = torch.ops.ascend_m1.short_conv_backward(grad, grad_state, *ctx.saved_tensors)
    return (*grads, None)


_library.impl("short_conv", _forward, "CompositeExplicitAutograd")
_library.impl("short_conv_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("ascend_m1::short_conv", _forward_fake, lib=_library)
torch.library.register_fake("ascend_m1::short_conv_backward", _backward_fake, lib=_library)
torch.library.register_autograd("ascend_m1::short_conv", _autograd, setup_context=_setup_context, lib=_library)
