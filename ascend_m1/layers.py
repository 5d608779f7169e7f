"""The parts of a decoder layer: norm, MLP, attention with its short convolution, and the layer itself.

Tensors are [batch, seq, heads, head_dim]. Nothing here knows a device, and modules hold no state: that of a
sequence lives in ``M1Cache``, where its tokens stand in ``Layout``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ascend_m1_ops import (
    Positions,
    add_rms_norm,
    apply_rope,
    attention,
    rms_norm,
    short_conv,
    short_conv_step,
    swiglu,
)

from .cache import M1Cache
from .configuration_baichuan_m1 import BaichuanM1Config, LayerSpec
from .layout import Layout

Rope = dict[int, tuple[Tensor, Tensor]]  # head_dim -> cos and sin of [batch, seq], from ``shared_tables``


class BaichuanM1RMSNorm(nn.Module):
    """RMS normalisation; ``forward`` also adds the residual when one is given."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Norm of x + residual, and the sum."""
        return add_rms_norm(x, residual, self.weight, self.eps)


class BaichuanM1MLP(nn.Module):
    """down(silu(gate(x)) · up(x))."""

    def __init__(self, config: BaichuanM1Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # Rows as one matrix: on some CPUs PyTorch's bfloat16 product of a [1, 1, hidden] tensor is many times slower.
        flat = x.flatten(0, -2)
        out: Tensor = self.down_proj(swiglu(self.gate_proj(flat), self.up_proj(flat)))
        return out.view_as(x)


class BaichuanM1Attention(nn.Module):
    """Packed projection, short convolution of k and v, RoPE, grouped-query attention."""

    def __init__(self, config: BaichuanM1Config, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.spec: LayerSpec = config.layer_specs[layer_idx]
        self.num_key_value_groups = self.spec.heads // self.spec.kv_heads
        self.W_pack = nn.Linear(config.hidden_size, self.spec.q_size + 2 * self.spec.kv_size, bias=False)
        self.o_proj = nn.Linear(self.spec.q_size, config.hidden_size, bias=False)
        taps = (1, 1, self.spec.kv_heads, 1, config.conv_window)
        self.conv_k = nn.Parameter(torch.empty(taps))
        self.conv_v = nn.Parameter(torch.empty(taps))

    def forward(
        self, hidden_states: Tensor, layout: Layout, rope: Rope, cache: M1Cache | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """[batch, seq, hidden] -> the same, and the attention weights [batch, heads, seq, keys] if computed."""
        batch, seq, _ = hidden_states.shape
        spec = self.spec
        packed = self.W_pack(hidden_states.flatten(0, 1)).view(batch, seq, -1)
        q, kv = packed.split([spec.q_size, 2 * spec.kv_size], dim=-1)
        kv = self.convolve(kv.unflatten(-1, (2, spec.kv_heads, spec.head_dim)), layout, cache)
        cos, sin = rope[spec.head_dim]
        q = apply_rope(q.unflatten(-1, (spec.heads, spec.head_dim)), cos, sin)
        k, v = apply_rope(kv[:, :, 0], cos, sin), kv[:, :, 1]
        if cache is None:
            positions = layout.among_themselves()
        else:
            k, v, positions = cache.extend(self.layer_idx, k, v, layout)
        out, weights = self.attend(q, k, v, positions)
        return self.o_proj(out.reshape(batch * seq, -1)).view_as(hidden_states), weights

    def convolve(self, kv: Tensor, layout: Layout, cache: M1Cache | None) -> Tensor:
        """Short convolution of raw k and v [batch, seq, 2, kv_heads, head_dim]."""
        taps = torch.stack([self.conv_k.view(-1, 2), self.conv_v.view(-1, 2)]).to(kv.dtype)  # autocast
        if cache is None:
            state = kv.new_zeros(kv.shape[0], *kv.shape[2:])
        else:
            state = cache.layers[self.layer_idx].conv_state(kv, layout)
        kv = layout.close_gaps(kv, state)
        if layout.document is not None:  # packed documents all start afresh
            state = kv.new_zeros(layout.cu_seqlens.shape[0] - 1, *kv.shape[2:])
        elif kv.shape[1] == 1:
            return short_conv_step(kv[:, 0], taps, state)[0].unsqueeze(1)
        return short_conv(kv.flatten(0, 1), taps, state, layout.cu_seqlens)[0].view(kv.shape)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, positions: Positions | None) -> tuple[Tensor, Tensor | None]:
        """By ``ascend_m1_ops.attention`` ("sdpa", the default) or a function of transformers' attention interface."""
        name, scale = self.config._attn_implementation, self.spec.head_dim**-0.5
        dropout = self.config.attention_dropout if self.training else 0.0
        if name == "sdpa" and not dropout:
            return attention(q, k, v, positions, window=self.spec.window, scale=scale), None
        who = positions or Positions.aligned(q.shape[1], k.shape[1], q.device)
        visible = who.mask(self.spec.window)
        mask = torch.zeros(visible.shape, dtype=q.dtype, device=q.device)
        mask = mask.masked_fill(~visible, torch.finfo(q.dtype).min)
        interface = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention_forward)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        result: tuple[Tensor, Tensor | None] = interface(
            self, q, k, v, mask, dropout=dropout, scaling=scale, is_causal=False
        )
        return result


def eager_attention_forward(
    module: BaichuanM1Attention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    *,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """transformers' "eager": heads first in, [batch, seq, heads, head_dim] and the weights out."""
    group = module.num_key_value_groups
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    scores = query @ key.transpose(2, 3) * scaling + mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class BaichuanM1DecoderLayer(GradientCheckpointingLayer):
    """Pre-norm attention and MLP, each added to the residual stream."""

    def __init__(self, config: BaichuanM1Config, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = BaichuanM1Attention(config, layer_idx)
        self.mlp = BaichuanM1MLP(config)
        self.input_layernorm = BaichuanM1RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = BaichuanM1RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden_states: Tensor, layout: Layout, rope: Rope, cache: M1Cache | None = None) -> Tensor:
        """[batch, seq, hidden] -> the same."""
        attended, _ = self.self_attn(self.input_layernorm(hidden_states), layout=layout, rope=rope, cache=cache)
        normed, hidden_states = self.post_attention_layernorm.add(attended, hidden_states)
        out: Tensor = hidden_states + self.mlp(normed)
        return out
