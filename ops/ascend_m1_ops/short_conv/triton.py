# mypy: ignore-errors
"""The short convolution and its gradient as Triton kernels: triton-ascend (NPU), mainline Triton (CUDA), interpreter.

k and v of a token are one row of 2 · kv_heads heads. Every program owns a contiguous range of rows, walks the
sequences that cross it and keeps the neighbouring row on chip. What ``conv_rope_cache/triton.py`` says of the form of a
kernel holds here too: no masks but scalar conditions, no strided loads.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def taps(weight, head, block: tl.constexpr):
    """Previous and current tap of ``block`` heads, each [block, 1], float32."""
    pairs = tl.load(weight + 2 * (head + tl.arange(0, block))[:, None] + tl.arange(0, 2)[None, :]).to(tl.float32)
    previous, current = tl.split(pairs)
    return previous[:, None], current[:, None]


@triton.jit
def _share(tokens):
    """First and one past the last row of this program."""
    share = (tokens + tl.num_programs(0) - 1) // tl.num_programs(0)
    first = tl.program_id(0) * share
    return first, tl.minimum(first + share, tokens)


@triton.jit(do_not_specialize=["tokens", "sequences"])
def short_conv_kernel(
    kv, weight, state, cu_seqlens, out, state_after,
    tokens, sequences, kv_stride,
    heads: tl.constexpr, head_dim: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """See ``ascend_m1_ops.short_conv``; ``heads`` = 2 kv_heads, all but kv contiguous."""
    dtype: tl.constexpr = out.dtype.element_ty
    stride = kv_stride.to(tl.int64)
    width = stride * 0 + heads * head_dim  # int64
    first, last = _share(tokens)
    for head in range(0, heads, block):
        w0, w1 = taps(weight, head, block)
        tile = (head + tl.arange(0, block))[:, None] * head_dim + tl.arange(0, head_dim)[None, :]
        for sequence in range(0, sequences):
            start = tl.load(cu_seqlens + sequence).to(tl.int32)
            low = tl.maximum(start, first)
            high = tl.minimum(tl.load(cu_seqlens + sequence + 1).to(tl.int32), last)
            if low < high:
                before = tl.zeros([block, head_dim], tl.float32)
                if low == start:
                    before = tl.load(state + sequence * width + tile).to(tl.float32)
                else:
                    before = tl.load(kv + (low - 1) * stride + tile).to(tl.float32)
                for token in range(low, high):
                    row = tl.load(kv + token * stride + tile).to(tl.float32)
                    tl.store(out + token * width + tile, (w0 * before + w1 * row).to(dtype))
                    before = row
        for sequence in range(tl.program_id(0), sequences, tl.num_programs(0)):
            end = tl.load(cu_seqlens + sequence + 1).to(tl.int32)
            if tl.load(cu_seqlens + sequence).to(tl.int32) < end:
                tl.store(state_after + sequence * width + tile, tl.load(kv + (end - 1) * stride + tile))
            else:
                tl.store(state_after + sequence * width + tile, tl.load(state + sequence * width + tile))


@triton.jit(do_not_specialize=["tokens", "sequences"])
def short_conv_backward_kernel(
    grad, grad_after, kv, weight, state, cu_seqlens, grad_kv, grad_state, tap_sums,
    tokens, sequences, kv_stride,
    heads: tl.constexpr, head_dim: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Gradients of kv and state, and each program's share of the taps' [programs, 2, heads] (previous, current).

    Rows go backwards: du_t = w[1]·g_t + w[0]·g_{t+1}, at the end of a sequence the state's gradient instead of
    w[0]·g_{t+1}; dw = Σ g_{t+1}·u_t, Σ g_t·u_t.
    """
    dtype: tl.constexpr = grad_kv.dtype.element_ty
    stride = kv_stride.to(tl.int64)
    width = stride * 0 + heads * head_dim  # int64
    first, last = _share(tokens)
    for head in range(0, heads, block):
        w0, w1 = taps(weight, head, block)
        tile = (head + tl.arange(0, block))[:, None] * head_dim + tl.arange(0, head_dim)[None, :]
        previous_sum = tl.zeros([block, head_dim], tl.float32)
        current_sum = tl.zeros([block, head_dim], tl.float32)
        for sequence in range(0, sequences):
            start = tl.load(cu_seqlens + sequence).to(tl.int32)
            end = tl.load(cu_seqlens + sequence + 1).to(tl.int32)
            low = tl.maximum(start, first)
            high = tl.minimum(end, last)
            if low < high:
                g_next = tl.zeros([block, head_dim], tl.float32)
                flow = tl.zeros([block, head_dim], tl.float32)  # what reaches a row from behind it
                if high == end:
                    flow = tl.load(grad_after + sequence * width + tile).to(tl.float32)
                else:
                    g_next = tl.load(grad + high * width + tile).to(tl.float32)
                    flow = w0 * g_next
                for back in range(low, high):
                    token = high - 1 - (back - low)
                    g = tl.load(grad + token * width + tile).to(tl.float32)
                    row = tl.load(kv + token * stride + tile).to(tl.float32)
                    tl.store(grad_kv + token * width + tile, (w1 * g + flow).to(dtype))
                    previous_sum += g_next * row
                    current_sum += g * row
                    g_next = g
                    flow = w0 * g
                if low == start:
                    tl.store(grad_state + sequence * width + tile, flow.to(dtype))
                    previous_sum += g_next * tl.load(state + sequence * width + tile).to(tl.float32)
        for sequence in range(tl.program_id(0), sequences, tl.num_programs(0)):
            if tl.load(cu_seqlens + sequence).to(tl.int32) == tl.load(cu_seqlens + sequence + 1).to(tl.int32):
                tl.store(grad_state + sequence * width + tile, tl.load(grad_after + sequence * width + tile))
        sums = tap_sums + tl.program_id(0) * (2 * heads) + head + tl.arange(0, block)
        tl.store(sums, tl.sum(previous_sum, 1))
        tl.store(sums + heads, tl.sum(current_sum, 1))
