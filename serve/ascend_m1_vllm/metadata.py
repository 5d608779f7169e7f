"""What the convolution is told of a batch: vLLM's own metadata, but for prompts of one token."""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.attention.backends.short_conv_attn import (
    ShortConvAttentionBackend,
    ShortConvAttentionMetadata,
    ShortConvAttentionMetadataBuilder,
)


class StateBackend(ShortConvAttentionBackend):  # type: ignore[misc]
    """vLLM asks a layer for its back end, and that for its builder."""

    @staticmethod
    def get_builder_cls() -> type[StateMetadataBuilder]:
        return StateMetadataBuilder


class StateMetadataBuilder(ShortConvAttentionMetadataBuilder):  # type: ignore[misc]
    """Where every request has one token, all are decodes, the first token of a prompt too.

    For such a batch vLLM replays its graph of a decode step, whatever the requests are. But a request without state it
    counts as a prefill, and then leaves the graph's buffers as the step before filled them.
    """

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, *args: Any, **kwargs: Any
    ) -> ShortConvAttentionMetadata:
        common = common_attn_metadata
        if common.max_query_len == 1 and common.is_prefilling is not None:
            common = common.replace(is_prefilling=torch.zeros_like(common.is_prefilling))
        return super().build(common_prefix_len, common, *args, **kwargs)
