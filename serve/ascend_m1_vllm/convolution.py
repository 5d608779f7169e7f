"""The convolution of K and V, its last raw token kept in vLLM's own state cache; on an NPU with RoPE in one launch.

For vLLM this is one of its state ("Mamba") layers, of the kind SHORT_CONV: blocks, preemption, prefix caching and
chunked prefill are vLLM's business. It is called through vLLM's operator ``vllm::short_conv``, at which vLLM already
splits its compiled graphs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.mamba import short_conv as _defines_the_operator  # noqa: F401
from vllm.model_executor.layers.mamba.abstract import MambaBase
from vllm.platforms import current_platform
from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum

from ascend_m1.pages import BLOCK, RankLayer
from ascend_m1_ops import conv_rope_cache, short_conv, short_conv_step
from ascend_m1_ops.conv_rope_cache.npu import why_composed

from .metadata import StateBackend


def state_shape(row: int) -> tuple[int, ...]:
    """As large as the K page of one block, the same in every layer; the raw k and v are its first elements.

    vllm-ascend asks for that size, vLLM 0.23 for equal states.
    """
    return (BLOCK, 1, row)


class StateConvolution(nn.Module, MambaBase):  # type: ignore[misc]
    """y_t = w[0] u_{t-1} + w[1] u_t over the raw k and v of each sequence; u_{-1} comes from the state cache.

    Attributes:
        fused: on an NPU with triton-ascend one launch makes all of attention's inputs, see ``rotated``.
        rope: cos and sin, float32 [positions, head_dim / 2]; set by the model.
    """

    rope: tuple[Tensor, Tensor]

    def __init__(self, layer: RankLayer, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        self.layer, self.prefix, self.dtype = layer, prefix, vllm_config.model_config.dtype
        self.taps = nn.Parameter(torch.empty(2, layer.kv_heads, 2), requires_grad=False)
        self.kv_cache: tuple[Tensor, ...] = (torch.tensor([]),)
        self.sizes = [heads * layer.head_dim for heads in (layer.heads, layer.kv_heads, layer.kv_heads)]
        row = torch.empty(0, layer.head_dim, dtype=self.dtype)
        self.fused = current_platform.device_type == "npu" and why_composed(row, row.float(), row) is None
        known = vllm_config.compilation_config.static_forward_context
        if prefix in known:
            raise ValueError(f"layer name {prefix} is taken")
        known[prefix] = self

    def forward(self, packed: Tensor) -> Tensor:
        """Packed projection [tokens, q + 2 · kv_size] -> convolved k and v [tokens, 2, kv_heads, head_dim]."""
        out = packed.new_empty(packed.shape[0], 2 * self.layer.kv_heads * self.layer.head_dim)
        torch.ops.vllm.short_conv(packed, out, self.prefix)
        return out.unflatten(1, (2, self.layer.kv_heads, self.layer.head_dim))

    def rotated(self, packed: Tensor) -> list[Tensor]:
        """Packed projection -> rotated q [tokens, heads, head_dim], convolved and rotated k, convolved v."""
        out = packed.new_empty(packed.shape[0] * sum(self.sizes))
        torch.ops.vllm.short_conv(packed, out, self.prefix)
        return self._parts(out, packed.shape[0])

    def _parts(self, out: Tensor, tokens: int) -> list[Tensor]:
        parts = out.split([tokens * size for size in self.sizes])
        return [part.view(tokens, -1, self.layer.head_dim) for part in parts]

    def forward_cuda(self, hidden_states: Tensor, output: Tensor) -> None:
        """What ``vllm::short_conv`` calls: fills ``output``, [tokens, 2 · kv_size], or as ``rotated`` wants it."""
        if self.fused:
            self._fill(hidden_states, output)
        else:
            self._convolve(hidden_states, output)

    def _fill(self, packed: Tensor, out: Tensor) -> None:
        metadata = get_forward_context().attn_metadata
        if metadata is None:  # a run that measures memory
            out.zero_()
            return
        table = metadata[self.prefix].table
        count = table.positions.shape[0]  # the rest is padding
        q, k, v = (part[:count] for part in self._parts(out, packed.shape[0]))
        caches = (k[:, None], v[:, None], self._state())  # blocks of one token
        q.copy_(conv_rope_cache(packed[:count], self.taps, *self.rope, table, *caches))

    def _state(self) -> Tensor:
        """Raw k and v of every state [rows, 2, kv_heads, head_dim], a view of vLLM's cache."""
        shape = (2, self.layer.kv_heads, self.layer.head_dim)
        return self.kv_cache[0].flatten(1)[:, : 2 * self.sizes[1]].unflatten(1, shape)

    def _convolve(self, hidden_states: Tensor, output: Tensor) -> None:
        kv = hidden_states[:, -output.shape[1] :].unflatten(1, (2, self.layer.kv_heads, self.layer.head_dim))
        out = output.view(kv.shape)
        metadata = get_forward_context().attn_metadata
        if metadata is None:  # a run that measures memory
            out.copy_(kv)
            return
        found = metadata[self.prefix]
        state = self._state()
        decodes, tokens = found.num_decode_tokens, found.num_decode_tokens + found.num_prefill_tokens
        if found.num_decodes:
            self._decode(kv[:decodes], out[:decodes], state, found)
        if found.num_prefills:
            self._prefill(kv[decodes:tokens], out[decodes:tokens], state, found)

    forward_native = forward_cuda  # its name on a CPU

    def _decode(self, kv: Tensor, out: Tensor, state: Tensor, metadata: Any) -> None:
        rows = metadata.state_indices_tensor_d.flatten()[: kv.shape[0]]
        first = metadata.seq_lens[: kv.shape[0]] == 1  # of a prompt of one token, see metadata.py
        before = state.index_select(0, rows).masked_fill(first.view(-1, 1, 1, 1), 0)
        convolved, after = short_conv_step(kv, self.taps, before)
        out.copy_(convolved)
        state.index_copy_(0, rows.long(), after)

    def _prefill(self, kv: Tensor, out: Tensor, state: Tensor, metadata: Any) -> None:
        rows = metadata.state_indices_tensor_p.flatten()
        known = metadata.has_initial_states_p.view(-1, 1, 1, 1)
        before = state.index_select(0, rows).masked_fill(~known, 0)
        convolved, after = short_conv(kv, self.taps, before, metadata.query_start_loc_p)
        out.copy_(convolved)
        state.index_copy_(0, rows.long(), after)

    def get_state_shape(self) -> tuple[tuple[int, ...], ...]:
        return (state_shape(self.layer.row),)

    def get_state_dtype(self) -> tuple[torch.dtype, ...]:
        return (self.dtype,)

    def get_attn_backend(self) -> type[StateBackend]:
        return StateBackend

    @property
    def mamba_type(self) -> MambaAttentionBackendEnum:
        return MambaAttentionBackendEnum.SHORT_CONV
