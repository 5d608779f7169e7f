"""Attention of one layer: packed projection, convolution, RoPE, vLLM's attention over its paged cache."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import QKVParallelLinear, RowParallelLinear
from vllm.platforms import current_platform

from ascend_m1.configuration_baichuan_m1 import LayerSpec
from ascend_m1.pages import RankLayer
from ascend_m1_ops import apply_rope

from .convolution import StateConvolution

Table = tuple[Tensor, Tensor]  # cos and sin, float32 [tokens, head_dim / 2]


class BaichuanM1Attention(nn.Module):
    """One layer's attention on this rank."""

    def __init__(
        self, hidden_size: int, spec: LayerSpec, layer: RankLayer, vllm_config: VllmConfig, prefix: str
    ) -> None:
        super().__init__()
        self.layer = layer
        quant_config = vllm_config.quant_config
        self.W_pack = QKVParallelLinear(
            hidden_size,
            spec.head_dim,
            spec.heads,
            spec.kv_heads,
            False,
            quant_config=quant_config,
            prefix=f"{prefix}.W_pack",
        )
        self.conv = StateConvolution(layer, vllm_config, f"{prefix}.conv")
        self.attn = nn.ModuleList(self._part(vllm_config, f"{prefix}.attn{i}.attn") for i in range(layer.parts))
        self.o_proj = RowParallelLinear(
            spec.q_size, hidden_size, bias=False, quant_config=quant_config, prefix=f"{prefix}.o_proj"
        )

    def _part(self, vllm_config: VllmConfig, prefix: str) -> Attention:
        layer = self.layer
        part = Attention(
            layer.heads // layer.parts,
            layer.padded_dim,
            layer.head_dim**-0.5,
            num_kv_heads=layer.kv_heads // layer.parts,
            cache_config=vllm_config.cache_config,
            quant_config=vllm_config.quant_config,
            per_layer_sliding_window=layer.window,
            prefix=prefix,
        )
        if layer.window is not None and current_platform.device_type == "npu":
            # vllm-ascend 0.23 hands it to the operator as keys before the query's own: docs/vllm-ascend-window.md
            part.impl.sliding_window = layer.window - 1
        return part

    def forward(self, x: Tensor, rope: Table | None) -> Tensor:
        """x [tokens, hidden] -> [tokens, hidden]; rope: rows of the tables for them, None if ``conv`` rotates."""
        layer = self.layer
        packed, _ = self.W_pack(x)
        if rope is None:
            q, k, v = self.conv.rotated(packed)
        else:
            kv = self.conv(packed)
            q = packed[:, : layer.heads * layer.head_dim].unflatten(1, (layer.heads, layer.head_dim))
            q, k, v = apply_rope(q, *rope), apply_rope(kv[:, 0], *rope), kv[:, 1]
        out = self._attend(q, k, v)
        projected: Tensor = self.o_proj(out.flatten(1))[0]
        return projected

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [tokens, heads, head_dim], k and v [tokens, kv_heads, head_dim] -> [tokens, heads, head_dim]."""
        layer = self.layer
        if layer.padded_dim > layer.head_dim:
            q, k, v = (nn.functional.pad(t, (0, layer.padded_dim - layer.head_dim)) for t in (q, k, v))
        if layer.parts == 1:
            out: Tensor = self.attn[0](*(t.flatten(1).contiguous() for t in (q, k, v)))
        else:
            pieces = zip(*(t.chunk(layer.parts, dim=1) for t in (q, k, v)), strict=True)
            outs = [
                part(*(t.flatten(1).contiguous() for t in piece)) for part, piece in zip(self.attn, pieces, strict=True)
            ]
            out = torch.cat(outs, dim=1)
        heads: Tensor = out.unflatten(1, (layer.heads, layer.padded_dim))[..., : layer.head_dim]
        return heads
