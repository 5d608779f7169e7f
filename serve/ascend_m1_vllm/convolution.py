"""The convolution of K and V, its last raw token kept in vLLM's own state cache; on an NPU with RoPE in one launch.

Elsewhere only the state is exchanged here: every token is given the raw k and v of the one before it, and the filter is
left to the compiler, which makes one loop of it and RoPE.

For vLLM this is one of its state ("Mamba") layers, of the kind SHORT_CONV: blocks, preemption, prefix caching and
chunked prefill are vLLM's business. It is called through vLLM's operator ``vllm::short_conv``, at which vLLM already
splits its compiled graphs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.mamba import short_conv as _defines_the_operator  # noqa: F401
from vllm.model_executor.layers.mamba.abstract import MambaBase
from vllm.platforms import current_platform
from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum

from ascend_m1.pages import BLOCK, RankLayer
from ascend_m1_ops import TokenTable, conv_rope_cache, short_conv_step
from ascend_m1_ops.conv_rope_cache.npu import why_composed

from .metadata import StateBackend, StateMetadata, find_chunks


def state_shape(row: int) -> tuple[int, ...]:
    """As large as the K page of one block, the same in every layer; the raw k and v are its first elements.

    vllm-ascend asks for that size, vLLM 0.23 for equal states.
    """
    return (BLOCK, 1, row)


class StateConvolution(nn.Module, MambaBase):
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
        before = packed.new_empty(packed.shape[0], 2 * self.sizes[1])
        torch.ops.vllm.short_conv(packed, before, self.prefix)
        shape = (2, self.layer.kv_heads, self.layer.head_dim)
        kv = packed[:, self.sizes[0] :].unflatten(1, shape)
        return short_conv_step(kv, self.taps, before.unflatten(1, shape))[0]

    def rotated(self, packed: Tensor) -> list[Tensor]:
        """Packed projection -> rotated q [tokens, heads, head_dim], convolved and rotated k, convolved v."""
        out = packed.new_empty(packed.shape[0] * sum(self.sizes))
        torch.ops.vllm.short_conv(packed, out, self.prefix)
        return self._parts(out, packed.shape[0])

    def _parts(self, out: Tensor, tokens: int) -> list[Tensor]:
        parts = out.split([tokens * size for size in self.sizes])
        return [part.view(tokens, -1, self.layer.head_dim) for part in parts]

    def forward_cuda(self, hidden_states: Tensor, output: Tensor) -> None:
        """What ``vllm::short_conv`` calls: fills ``output`` as ``rotated`` or ``forward`` wants it."""
        metadata = get_forward_context().attn_metadata
        if metadata is None:  # a run that measures memory
            output.zero_()
        elif self.fused:
            self._fill(hidden_states, output, metadata[self.prefix].table)
        else:
            self._exchange(hidden_states[:, self.sizes[0] :], output, metadata[self.prefix])

    def _fill(self, packed: Tensor, out: Tensor, table: TokenTable) -> None:
        count = table.positions.shape[0]  # the rest is padding
        q, k, v = (part[:count] for part in self._parts(out, packed.shape[0]))
        state = self._state().unflatten(1, (2, self.layer.kv_heads, self.layer.head_dim))
        caches = (k[:, None], v[:, None], state)  # blocks of one token
        q.copy_(conv_rope_cache(packed[:count], self.taps, *self.rope, table, *caches))

    def _state(self) -> Tensor:
        """Raw k and v of every state [rows, 2 · kv_size], a view of vLLM's cache."""
        return self.kv_cache[0].flatten(1)[:, : 2 * self.sizes[1]]

    def _exchange(self, kv: Tensor, before: Tensor, metadata: StateMetadata) -> None:
        """kv [tokens, 2 · kv_size]: into ``before`` the row before each, from the state for a chunk's first; the last
        of each chunk into the state."""
        if metadata.chunks is None:
            metadata.chunks = find_chunks(metadata)
        state, chunks = self._state(), metadata.chunks
        if chunks.ends is None:
            count = chunks.rows.shape[0]  # the rest is padding
            kv, before = kv[:count], before[:count]
            torch.index_select(state, 0, chunks.rows, out=before)
            if chunks.new is not None:
                before.masked_fill_(chunks.new, 0)
            state.index_copy_(0, chunks.rows, kv)
            return
        held = state.index_select(0, chunks.rows)
        if chunks.new is not None:
            held.masked_fill_(chunks.new, 0)
        first, last = chunks.ends
        before[1:] = kv[:-1]
        before.index_copy_(0, first, held)
        state.index_copy_(0, chunks.rows, kv.index_select(0, last))

    forward_native = forward_cuda  # its name on a CPU

    def get_state_shape(self) -> tuple[tuple[int, ...], ...]:
        return (state_shape(self.layer.row),)

    def get_state_dtype(self) -> tuple[torch.dtype, ...]:
        return (self.dtype,)

    def get_attn_backend(self) -> type[StateBackend]:
        return StateBackend

    @property
    def mamba_type(self) -> MambaAttentionBackendEnum:
        return MambaAttentionBackendEnum.SHORT_CONV
