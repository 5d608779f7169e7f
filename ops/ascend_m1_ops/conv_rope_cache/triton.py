# mypy: ignore-errors
"""The fused operator as one Triton kernel: one source for triton-ascend (NPU), mainline Triton (CUDA), interpreter.

Every program owns a contiguous range of rows and keeps the raw row it saw last on chip, so each k and v is read once.
The form follows from what the NPU's compiler does with others: a masked-off lane may still be read, so nothing is
masked; a masked scatter becomes single-element stores, so a cache row is stored behind a scalar condition; loads of
stride 2 abort its front end, so taps are loaded in pairs. ``tests/lowering`` holds all this.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..short_conv.triton import taps


@triton.jit
def _angles(cos, sin, positions, token, half: tl.constexpr):
    """Cosines and sines of a token's position, each [1, half]."""
    entry = tl.load(positions + token).to(tl.int64) * half + tl.arange(0, half)
    return tl.load(cos + entry)[None, :], tl.load(sin + entry)[None, :]


@triton.jit
def _rotate_queries(
    packed, cos, sin, positions, q, first, last, stride,
    heads: tl.constexpr, half: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Rows first:last of q [tokens, heads, 2 half], ``block`` heads at a time."""
    dtype: tl.constexpr = q.dtype.element_ty
    tile = tl.arange(0, block)[:, None] * (2 * half) + tl.arange(0, half)[None, :]
    q_stride = stride * 0 + heads * 2 * half  # int64, like stride
    for token in range(first, last):
        c, s = _angles(cos, sin, positions, token, half)
        for head in range(0, heads, block):
            source = packed + token * stride + head * (2 * half) + tile
            target = q + token * q_stride + head * (2 * half) + tile
            x1 = tl.load(source).to(tl.float32)
            x2 = tl.load(source + half).to(tl.float32)
            tl.store(target, (x1 * c - x2 * s).to(dtype))
            tl.store(target + half, (x2 * c + x1 * s).to(dtype))


@triton.jit
def _raw(row, k_tile, v_tile, half: tl.constexpr):
    """Raw k in halves [block, half] and v [block, 2 half] of one row, float32."""
    k1 = tl.load(row + k_tile).to(tl.float32)
    k2 = tl.load(row + k_tile + half).to(tl.float32)
    return k1, k2, tl.load(row + v_tile).to(tl.float32)


@triton.jit
def _no_row(block: tl.constexpr, half: tl.constexpr):
    """Raw k in halves and v before the first row."""
    return (
        tl.zeros([block, half], tl.float32),
        tl.zeros([block, half], tl.float32),
        tl.zeros([block, 2 * half], tl.float32),
    )


@triton.jit
def _cache_row(cache, slot, block_stride, slot_stride, block_size: tl.constexpr):
    """Where a slot lies in k_cache or v_cache."""
    return cache + (slot // block_size) * block_stride.to(tl.int64) + (slot % block_size) * slot_stride.to(tl.int64)


@triton.jit(do_not_specialize=["tokens"])
def conv_rope_cache_kernel(
    packed, weight, cos, sin, positions, slots, starts, cu_seqlens, state_rows, continues, k_cache, v_cache, state, q,
    tokens, packed_stride, k_block_stride, k_slot_stride, v_block_stride, v_slot_stride, state_stride,
    heads: tl.constexpr, kv_heads: tl.constexpr, half: tl.constexpr, block_size: tl.constexpr,
    q_block: tl.constexpr, kv_block: tl.constexpr,
):  # fmt: skip
    """See ``ascend_m1_ops.conv_rope_cache``; the tensors are its arguments, q its result."""
    dtype: tl.constexpr = q.dtype.element_ty
    width: tl.constexpr = kv_heads * 2 * half
    stride = packed_stride.to(tl.int64)
    share = (tokens + tl.num_programs(0) - 1) // tl.num_programs(0)
    first = tl.program_id(0) * share
    last = tl.minimum(first + share, tokens)
    _rotate_queries(packed, cos, sin, positions, q, first, last, stride, heads, half, q_block)
    raw = packed + heads * 2 * half  # k of row 0
    for head in range(0, kv_heads, kv_block):
        wk0, wk1 = taps(weight, head, kv_block)
        wv0, wv1 = taps(weight, kv_heads + head, kv_block)
        lines = (head + tl.arange(0, kv_block))[:, None] * (2 * half)
        k_tile = lines + tl.arange(0, half)[None, :]
        full_tile = lines + tl.arange(0, 2 * half)[None, :]
        v_tile = full_tile + width
        k1, k2, v = _no_row(kv_block, half)  # the raw row before
        held = -2  # which row that is
        for token in range(first, last):
            slot = tl.load(slots + token)
            sequence = tl.load(starts + token)
            state_row = -1
            if sequence >= 0:
                state_row = tl.load(state_rows + sequence)
            own_state = state + state_row * state_stride.to(tl.int64)
            if slot >= 0:
                if sequence >= 0:
                    # A branch, not a product with ``continues``: a row left by another sequence may hold NaN.
                    k1, k2, v = _no_row(kv_block, half)
                    if state_row >= 0:  # noqa: SIM102  (``and`` would load for sequences without a row)
                        if tl.load(continues + sequence) != 0:
                            k1, k2, v = _raw(own_state, k_tile, v_tile, half)
                elif held != token - 1:
                    k1, k2, v = _raw(raw + (token - 1) * stride, k_tile, v_tile, half)
                u1, u2, u = _raw(raw + token * stride, k_tile, v_tile, half)
                c, s = _angles(cos, sin, positions, token, half)
                # Rounded like the model's short_conv, then rotated in float32 and rounded again.
                y1 = (wk0 * k1 + wk1 * u1).to(dtype).to(tl.float32)
                y2 = (wk0 * k2 + wk1 * u2).to(dtype).to(tl.float32)
                k_row = _cache_row(k_cache, slot, k_block_stride, k_slot_stride, block_size)
                v_row = _cache_row(v_cache, slot, v_block_stride, v_slot_stride, block_size)
                tl.store(k_row + k_tile, (y1 * c - y2 * s).to(dtype))
                tl.store(k_row + k_tile + half, (y2 * c + y1 * s).to(dtype))
                tl.store(v_row + full_tile, (wv0 * v + wv1 * u).to(dtype))
                k1, k2, v = u1, u2, u
                held = token
            if state_row >= 0:
                # The program that reads a sequence's state also writes it: nobody else touches it. The barrier keeps
                # the threads of a GPU, and the copy pipes of an NPU, from writing before they have read.
                tl.debug_barrier()
                final = raw + (tl.load(cu_seqlens + sequence + 1) - 1) * stride
                tl.store(own_state + full_tile, tl.load(final + full_tile))
                tl.store(own_state + v_tile, tl.load(final + v_tile))


def _traffic(arguments):
    """Bytes a launch reads and writes if every row is stored, by its arguments; for models of its time."""
    a = arguments
    head = a["tokens"] * 2 * a["half"] * a["packed"].element_size()
    kv, q = 2 * a["kv_heads"] * head, a["heads"] * head
    state = a["state_rows"].shape[0] * kv // max(a["tokens"], 1)
    tables = a["tokens"] * 2 * a["half"] * a["cos"].element_size()
    return q + kv + 2 * state + tables, q + kv + state


conv_rope_cache_kernel.traffic = _traffic
