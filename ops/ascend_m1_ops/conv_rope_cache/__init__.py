"""Packed projection to attention's inputs in one launch: convolution, rotation, cache write and state write.

    q = rope(packed q)        k = rope(round(conv(packed k)))        v = conv(packed v)
    conv(u)_t = w[0] · u_{t-1} + w[1] · u_t

q is returned, k and v go straight to their slots of the cache, the last raw k and v of every sequence to its state: at
inference the convolution costs no launch of its own and nothing is written twice. In place of ``short_conv``,
``apply_rope`` and a cache write; no gradient. Source: the published ``modeling_baichuan.py`` (``custom_convolution``,
half-split rotation); the slots are those of paged attention (Kwon et al., 2023).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..blocks import gradient_wanted
from . import library  # defines torch.ops.ascend_m1.conv_rope_cache
from .reference import conv_rope_cache_reference
from .tokens import TokenTable

__all__ = ["TokenTable", "conv_rope_cache", "conv_rope_cache_reference"]


def conv_rope_cache(
    packed: Tensor,
    weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    table: TokenTable,
    k_cache: Tensor,
    v_cache: Tensor,
    state: Tensor,
) -> Tensor:
    """Convolve, rotate and store the tokens of a batch of sequences laid end to end (decode, prefill, chunks, mixed).

    Args:
        packed: output of the packed projection [tokens, (heads + 2 kv_heads) head_dim]: q heads, k heads, v heads;
            float32, bfloat16, float16 or float64. Rows may be strided, a row itself is contiguous.
        weight: taps [2, kv_heads, 2] of packed's dtype: (k or v, head, previous or current token).
        cos, sin: float32 tables [max_position, head_dim / 2] of ``rope_tables(torch.arange(max_position), …)``
            (float64 for float64 inputs).
        table: where each token stands; every index is within its bounds (not checked: that would wait for the device).
        k_cache, v_cache: [blocks, block_size, kv_heads, head_dim] of packed's dtype, **written**; blocks and slots may
            be strided, [kv_heads, head_dim] is contiguous.
        state: raw k and v [rows, 2, kv_heads, head_dim] of packed's dtype, **read and written**; rows may be strided.

    Returns:
        Rotated q [tokens, heads, head_dim], contiguous. Low precision is computed in float32; k is rounded after the
        convolution and after the rotation, q and v once.

    Raises:
        RuntimeError: shapes or dtypes do not fit (from the operator's checks), or a gradient is wanted.
    """
    if not torch.compiler.is_compiling() and gradient_wanted(packed, weight):
        raise RuntimeError(
            "conv_rope_cache: has no gradient: call it under torch.no_grad(), or train with short_conv and apply_rope"
        )
    caches = (k_cache, v_cache, state)
    if packed.device.type == "cpu" and not torch.compiler.is_compiling():
        return library.composed(packed, weight, cos, sin, table, *caches)  # a dispatch takes as long as a small batch
    q: Tensor = torch.ops.ascend_m1.conv_rope_cache(packed, weight, cos, sin, *table.tensors(), *caches)
    return q
