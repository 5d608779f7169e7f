"""What the convolution is told of a batch: vLLM's own metadata, but for prompts of one token, and what it means."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.attention.backends.short_conv_attn import (
    ShortConvAttentionBackend,
    ShortConvAttentionMetadata,
    ShortConvAttentionMetadataBuilder,
)

from ascend_m1_ops import TokenTable


@dataclass(frozen=True)
class Chunks:
    """A batch's tokens of one sequence each.

    Attributes:
        rows: of the state, int64 [chunks].
        new: bool [chunks, 1], whose state is not set yet; None: of none of them.
        ends: first and last token in the batch, int64 [chunks] each; None: a chunk is one token, chunk i token i.
    """

    rows: Tensor
    new: Tensor | None
    ends: tuple[Tensor, Tensor] | None = None


@dataclass
class StateMetadata(ShortConvAttentionMetadata):
    """More of a batch.

    Attributes:
        table: for the fused operator, whose cache is an attention's input: token i goes to slot i.
        chunks: without it. On a CPU they are known here; elsewhere the first layer finds them, so that a captured graph
            reads them from vLLM's buffers, and the others take what it found.
    """

    table: TokenTable | None = None
    chunks: Chunks | None = None


def find_chunks(metadata: StateMetadata) -> Chunks:
    """The chunks of vLLM's metadata: decodes, then those of prompts."""
    count = metadata.num_decode_tokens
    rows, new = metadata.state_indices_tensor_d.flatten()[:count].long(), metadata.seq_lens[:count, None] == 1
    if not metadata.num_prefills:
        return Chunks(rows, new)
    rows = torch.cat([rows, metadata.state_indices_tensor_p.flatten().long()])
    new = torch.cat([new, ~metadata.has_initial_states_p[:, None]])
    borders, order = metadata.query_start_loc_p.long() + count, torch.arange(count, device=rows.device)
    return Chunks(rows, new, (torch.cat([order, borders[:-1]]), torch.cat([order, borders[1:] - 1])))


class StateBackend(ShortConvAttentionBackend):
    """vLLM asks a layer for its back end, and that for its builder."""

    @staticmethod
    def get_builder_cls() -> type[StateMetadataBuilder]:
        return StateMetadataBuilder


class StateMetadataBuilder(ShortConvAttentionMetadataBuilder):
    """Where every request has one token, all are decodes, the first token of a prompt too.

    For such a batch vLLM replays its graph of a decode step, whatever the requests are. But a request without state it
    counts as a prefill, and then leaves the graph's buffers as the step before filled them.
    """

    metadata_cls = StateMetadata
    supports_update_block_table = False  # the table holds rows of the state

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        layers = vllm_config.compilation_config.static_forward_context
        self.fused = any(layers[name].fused for name in layer_names)  # by head_dim: others need no table
        if self.fused:  # a captured graph finds its numbers in these
            limits = vllm_config.scheduler_config
            room = max(limits.max_num_batched_tokens, limits.max_num_seqs)
            self.order = torch.arange(room + 1, dtype=torch.int32, device=device)
            self.positions, self.continues = torch.zeros(2, limits.max_num_seqs, dtype=torch.int32, device=device)

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, *args: Any, **kwargs: Any
    ) -> StateMetadata:
        common = common_attn_metadata
        if common.max_query_len == 1 and common.is_prefilling is not None:
            common = common.replace(is_prefilling=torch.zeros_like(common.is_prefilling))
        metadata: StateMetadata = super().build(common_prefix_len, common, *args, **kwargs)
        if self.fused:
            prefills = metadata.num_prefills
            metadata.table = self._mixed(metadata, common) if prefills else self._decodes(metadata, common.seq_lens)
        elif self.device.type == "cpu":
            chunks = find_chunks(metadata)
            metadata.chunks = chunks if chunks.new is not None and chunks.new.any() else replace(chunks, new=None)
        return metadata

    def _decodes(self, metadata: StateMetadata, lengths: Tensor) -> TokenTable:
        """One token of each sequence; rows that a graph adds have length 0 and the state's spare row."""
        rows = metadata.state_indices_tensor_d.flatten()
        count = rows.shape[0]
        positions, continues = self.positions[:count], self.continues[:count]
        positions.copy_((lengths[:count] - 1).clamp_min(0))
        continues.copy_(lengths[:count] > 1)
        return TokenTable(positions, self.order[:count], self.order[:count], self.order[: count + 1], rows, continues)

    def _mixed(self, metadata: StateMetadata, common: CommonAttentionMetadata) -> TokenTable:
        """Decodes, then chunks of prompts; never captured."""
        sequences = metadata.num_decodes + metadata.num_prefills
        tokens = metadata.num_decode_tokens + metadata.num_prefill_tokens
        decodes = metadata.state_indices_tensor_d.flatten()[: metadata.num_decodes]
        rows = torch.cat([decodes, metadata.state_indices_tensor_p.flatten()])
        borders = common.query_start_loc_cpu[: sequences + 1]
        owner = torch.repeat_interleave(torch.arange(sequences), borders.diff())
        starts = torch.where(torch.arange(tokens) == borders[owner], owner, -1)
        owner, starts, lengths = (t.to(rows.device, torch.int32) for t in (owner, starts, borders.diff()))
        held = common.seq_lens[:sequences].int() - lengths
        first = common.query_start_loc[:sequences].int()
        positions = (held - first).index_select(0, owner) + self.order[:tokens]
        borders = common.query_start_loc[: sequences + 1].int()
        return TokenTable(positions, self.order[:tokens], starts, borders, rows.int(), (held > 0).int())
