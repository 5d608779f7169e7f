"""The operators in numpy: float32 arithmetic in a fixed order, rounding to nearest even. Bits, not tolerances.

Independent of torch's and Triton's arithmetic; torch only holds the data.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.ops.conv_rope_cases import Case

Array = NDArray[Any]
_BITS = {2: torch.int16, 4: torch.int32}


def bits(x: Tensor) -> Array:
    """The tensor's content as integers."""
    return x.contiguous().view(_BITS[x.element_size()]).numpy()


def wide(x: Tensor) -> Array:
    """The tensor's values as float32 (bfloat16 is the upper half of a float32)."""
    if x.dtype == torch.bfloat16:
        return (bits(x).view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return x.contiguous().numpy().astype(np.float32)


def rounded(x: Array, dtype: torch.dtype) -> Array:
    """float32 values rounded to nearest even, as the bits of ``dtype``."""
    if dtype == torch.bfloat16:
        word = x.astype(np.float32).view(np.uint32).astype(np.uint64)
        return ((word + 0x7FFF + ((word >> 16) & 1)) >> 16).astype(np.uint16).view(np.int16)
    return x.astype(np.float16).view(np.int16) if dtype == torch.float16 else x.astype(np.float32).view(np.int32)


def through(x: Array, dtype: torch.dtype) -> Array:
    """float32 values after a rounding to ``dtype``."""
    return wide(torch.from_numpy(rounded(x, dtype).copy()).view(dtype))


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """x [heads, head_dim] by the angles of one position [head_dim / 2]."""
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def conv_rope_cache(case: Case) -> tuple[Array, Array, Array, Array]:
    """q, k_cache, v_cache and state after the call, as bits."""
    dtype = case.packed.dtype
    block_size, kv_heads, head_dim = case.k_cache.shape[1:]
    heads = wide(case.packed).reshape(case.packed.shape[0], -1, head_dim)
    kv = heads[:, -2 * kv_heads :].reshape(-1, 2, kv_heads, head_dim)
    cos, sin, weight, before = (wide(x) for x in (case.cos, case.sin, case.weight, case.state))
    table = {name: tensor.tolist() for name, tensor in vars(case.table).items()}
    k_cache, v_cache, state = (bits(x).copy() for x in (case.k_cache, case.v_cache, case.state))
    q = np.zeros((len(kv), heads.shape[1] - 2 * kv_heads, head_dim), state.dtype)
    for token, (slot, start) in enumerate(zip(table["slots"], table["starts"], strict=True)):
        angles = (cos[table["positions"][token]], sin[table["positions"][token]])
        q[token] = rounded(rotate(heads[token, : -2 * kv_heads], *angles), dtype)
        previous = kv[token - 1]
        if start >= 0:
            row = table["state_rows"][start]
            previous = before[row] if row >= 0 and table["continues"][start] else np.zeros_like(kv[0])
            if row >= 0:
                state[row] = rounded(kv[table["cu_seqlens"][start + 1] - 1], dtype)
        if slot >= 0:
            k, v = weight[..., :1] * previous + weight[..., 1:] * kv[token]
            place = divmod(slot, block_size)
            k_cache[place] = rounded(rotate(through(k, dtype), *angles), dtype)
            v_cache[place] = rounded(v, dtype)
    return q, k_cache, v_cache, state


def short_conv(kv: Tensor, weight: Tensor, state: Tensor, cu_seqlens: Tensor) -> tuple[Array, Array]:
    """Convolved kv and new state, as bits."""
    rows, taps, before = wide(kv), wide(weight), wide(state)
    out, after = np.zeros_like(rows), before.copy()
    for sequence, (start, end) in enumerate(pairwise(cu_seqlens.tolist())):
        if end > start:
            history = np.concatenate([before[sequence : sequence + 1], rows[start : end - 1]])
            out[start:end] = taps[..., :1] * history + taps[..., 1:] * rows[start:end]
            after[sequence] = rows[end - 1]
    return rounded(out, kv.dtype), rounded(after, kv.dtype)


def short_conv_backward(
    grad: Tensor, grad_after: Tensor, kv: Tensor, weight: Tensor, state: Tensor, cu_seqlens: Tensor
) -> tuple[Array, Array, Array]:
    """Gradients of kv, weight and state, as bits; sums from the last row to the first, then over head_dim."""
    g, flow_in, rows, taps, before = (wide(x) for x in (grad, grad_after, kv, weight, state))
    grad_kv, grad_state = np.zeros_like(rows), flow_in.copy()
    sums = np.zeros((2, *rows.shape[1:]), np.float32)  # previous and current tap
    for sequence, (start, end) in enumerate(pairwise(cu_seqlens.tolist())):
        behind, flow = np.zeros_like(before[0]), flow_in[sequence]
        for token in reversed(range(start, end)):
            grad_kv[token] = taps[..., 1:] * g[token] + flow
            sums += np.stack([behind * rows[token], g[token] * rows[token]])
            behind, flow = g[token], taps[..., :1] * g[token]
        if end > start:
            grad_state[sequence] = flow
            sums[0] += behind * before[sequence]
    in_order = np.cumsum(sums, axis=-1, dtype=np.float32)[..., -1]  # [tap, k or v, head]
    return tuple(rounded(x, kv.dtype) for x in (grad_kv, np.moveaxis(in_order, 0, -1), grad_state))  # type: ignore[return-value]
