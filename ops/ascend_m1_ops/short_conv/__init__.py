"""Short convolution on K and V: the width-2 causal filter of Baichuan-M1's attention.

    y_t = w[0] · u_{t-1} + w[1] · u_t        u_{-1} = state (zeros at the start of a sequence or document)

Per K/V head, after the packed projection and before RoPE, without bias or activation. Source: the published
``modeling_baichuan.py`` (``custom_convolution``) and the model card ("short convolution attention").
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..blocks import widened
from . import library  # noqa: F401  (defines torch.ops.ascend_m1.short_conv)
from .reference import short_conv_reference

__all__ = ["short_conv", "short_conv_reference", "short_conv_step"]


def short_conv(kv: Tensor, weight: Tensor, state: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """Convolve K and V of a batch of sequences laid end to end (prefill, chunks of it, packed documents).

    Args:
        kv: raw keys and values [tokens, 2, kv_heads, head_dim], float32, bfloat16, float16 or float64; rows may be
            strided (a slice of the packed projection).
        weight: taps [2, kv_heads, 2] of kv's dtype: (k or v, head, previous or current token).
        state: raw k and v of the token before each sequence [sequences, 2, kv_heads, head_dim]; zeros at a start.
        cu_seqlens: int32 or int64 [sequences + 1]; sequence s holds the tokens cu_seqlens[s]:cu_seqlens[s + 1].
            Empty sequences are allowed and keep their state.

    Returns:
        Convolved kv [tokens, 2, kv_heads, head_dim], and the state after each sequence (raw k and v of its last
        token) [sequences, 2, kv_heads, head_dim]. Low-precision inputs are computed in float32 and rounded once.

    Raises:
        RuntimeError: shapes or dtypes do not fit (from the operator's checks).
    """
    result: tuple[Tensor, Tensor] = torch.ops.ascend_m1.short_conv(kv, weight, state, cu_seqlens)
    return result


def short_conv_step(kv: Tensor, weight: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One decode step: every sequence has exactly one token.

    Args:
        kv: raw keys and values [sequences, 2, kv_heads, head_dim].
        weight: taps [2, kv_heads, 2].
        state: raw k and v of the token before [sequences, 2, kv_heads, head_dim].

    Returns:
        Convolved kv, and the new state: ``kv`` itself, not a copy.
    """
    wide = widened(kv)
    taps = weight.to(wide.dtype).unsqueeze(-2)  # [2, kv_heads, 1, 2]
    out = torch.addcmul(wide * taps[..., 1], state.to(wide.dtype), taps[..., 0])
    return out.to(kv.dtype), kv
