"""The short convolution and its gradient, on every device.

Long inputs are one pass over memory where oneDNN has a depthwise convolution for the processor. Elsewhere low-precision
rows are widened in blocks that stay in the processor's cache between the multiply, the add and the rounding; float32
needs no widening and goes in one piece.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from ..blocks import block_rows, wide_dtype


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


def _in_blocks(kv: Tensor, previous_tap: Tensor, current_tap: Tensor) -> Tensor:
    out = torch.empty(kv.shape, dtype=kv.dtype, device=kv.device)
    wide = wide_dtype(kv.dtype)
    if kv.dtype == wide:
        return _filter(kv, previous_tap, current_tap, out)
    step = block_rows(kv)
    for start in range(0, kv.shape[0], step):
        lead = min(start, 1)  # a block needs the row before its first
        rows = kv[start - lead : start + step].to(wide)
        out[start : start + step] = _filter(rows, previous_tap, current_tap, torch.empty_like(rows))[lead:]
    return out


# Below so many elements the convolution's fixed cost, a fifth of a millisecond, is more than it saves.
_ONE_PASS_ELEMENTS = 1 << 20


def _one_pass(kv: Tensor) -> bool:
    """Whether oneDNN's depthwise convolution takes these rows: many, without gaps, instructions for their dtype."""
    many = kv.numel() >= _ONE_PASS_ELEMENTS and kv.is_contiguous()
    if not many or kv.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if kv.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if kv.dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return kv.dtype == torch.float32


def _depthwise(kv: Tensor, weight: Tensor) -> Tensor:
    """All rows as one sequence, zeros before the first: a convolution over an image of one line, heads as channels."""
    tokens, channels = kv.shape[0], kv.shape[1:].numel()
    taps = weight.unsqueeze(2).expand(*kv.shape[1:], 2).reshape(channels, 1, 1, 2)
    line = kv.view(1, 1, tokens, channels).permute(0, 3, 1, 2)  # channels last, as they lie in memory
    out = F.conv2d(line, taps, padding=(0, 1), groups=channels)  # one row more: the padding behind
    return out.permute(0, 2, 3, 1).reshape(tokens + 1, *kv.shape[1:])[:tokens]


def forward(kv: Tensor, weight: Tensor, state: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """See ``ascend_m1_ops.short_conv``."""
    wide = wide_dtype(kv.dtype)
    previous_tap, current_tap = (tap.to(wide).unsqueeze(-1) for tap in weight.unbind(-1))
    out = _depthwise(kv, weight) if _one_pass(kv) else _in_blocks(kv, previous_tap, current_tap)
    if all(start < end for start, end in pairwise(cu_seqlens.tolist())):  # none empty: nothing to pick out
        borders = cu_seqlens.long()
        first_tokens, before, new_state = borders[:-1], state, kv.index_select(0, borders[1:] - 1)
    else:
        owners, first_tokens, last_tokens = _boundaries(cu_seqlens)
        before = state[owners]
        new_state = state.clone(memory_format=torch.contiguous_format).index_copy_(0, owners, kv[last_tokens])
    fresh = torch.addcmul(kv.index_select(0, first_tokens).to(wide) * current_tap, before.to(wide), previous_tap)
    out.index_copy_(0, first_tokens, fresh.to(kv.dtype))
    return out, new_state


def backward(
    grad: Tensor, grad_state: Tensor, kv: Tensor, weight: Tensor, state: Tensor, cu_seqlens: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """du_t = w[1]·g_t + w[0]·g_{t+1}; dw = Σ g_t·(u_{t-1}, u_t); a start's g_t goes to the state instead."""
    wide = wide_dtype(kv.dtype)
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
