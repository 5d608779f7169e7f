"""The definitions of verify-npu's cases, in the dtype of their inputs (float64); see ``cases.py``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import ascend_m1_ops as ops
from ascend_m1_ops import Positions

from . import calls


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, ...]:
    total = x + residual
    return ops.rms_norm_reference(total, weight, eps), total


def swiglu_packed(gate_up: Tensor) -> tuple[Tensor, ...]:
    return (ops.swiglu_reference(*gate_up.chunk(2, dim=-1)),)


def rope(x: Tensor) -> tuple[Tensor, ...]:
    return (ops.rope_reference(x, *calls.tables(x, range(20, 20 + x.shape[0]))),)


def loss(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    labels = torch.tensor(calls.LABELS)
    logits = ops.norm_head_reference(x, weight)
    return (torch.nn.functional.cross_entropy(logits, labels, reduction="sum", ignore_index=-100),)


def quantised(x: Tensor, weight: Tensor, scales: Tensor, *, bits: int) -> tuple[Tensor, ...]:
    return (ops.quant_linear_reference(x, *calls.whole_numbers(weight, scales, bits)),)


def short_conv(kv: Tensor, weight: Tensor, state: Tensor) -> tuple[Tensor, ...]:
    return ops.short_conv_reference(kv, weight, state, calls.borders((4, 0, 3), kv.device))


def fused(
    packed: Tensor, weight: Tensor, k_cache: Tensor, v_cache: Tensor, state: Tensor, *, lengths: Sequence[int]
) -> tuple[Tensor, ...]:
    cos, sin = calls.tables(packed, head_dim=k_cache.shape[-1])
    k_cache, v_cache, state = k_cache.clone(), v_cache.clone(), state.clone()
    table = calls.token_table(lengths, packed.device)
    q = ops.conv_rope_cache_reference(packed, weight, cos, sin, table, k_cache, v_cache, state)
    return q, k_cache, v_cache, state


def attention(q: Tensor, k: Tensor, v: Tensor, *, window: int | None) -> tuple[Tensor, ...]:
    positions = Positions.aligned(q.shape[1], k.shape[1], q.device)
    return (ops.attention_reference(q, k, v, positions, window=window),)


def packed_attention(q: Tensor, k: Tensor, v: Tensor, *, window: int | None) -> tuple[Tensor, ...]:
    return (ops.attention_reference(q, k, v, calls.packed_positions(q.device), window=window),)


def paged_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, *, queries: Sequence[int], lengths: Sequence[int]
) -> tuple[Tensor, ...]:
    ends = [sum(queries[: i + 1]) for i in range(len(queries))]
    table = calls.block_table(q.device)
    scale = q.shape[-1] ** -0.5
    return (ops.paged_attention_reference(q, k_cache, v_cache, table, list(lengths), ends, scale),)


def adamw(weight: Tensor, gradient: Tensor) -> tuple[Tensor, ...]:
    """Loshchilov and Hutter (2019), two steps."""
    first, second = torch.zeros_like(weight), torch.zeros_like(weight)
    for step in (1, 2):
        weight = weight * (1 - calls.RATE * calls.DECAY)
        first = calls.BETAS[0] * first + (1 - calls.BETAS[0]) * gradient
        second = calls.BETAS[1] * second + (1 - calls.BETAS[1]) * gradient.square()
        size = (second / (1 - calls.BETAS[1] ** step)).sqrt() + 1e-8
        weight = weight - calls.RATE * first / (1 - calls.BETAS[0] ** step) / size
    return (weight,)
