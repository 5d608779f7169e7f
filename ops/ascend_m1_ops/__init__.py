"""Operators of Baichuan-M1: each folder holds one, with its formula, its reference and its kernels.

B batch, T query tokens, S cached tokens, H query heads, KV key/value heads, D head_dim. ops/README.md is the catalogue.
"""

from .attention import Positions, attention, attention_reference, ragged_attention, sdpa
from .conv_rope_cache import TokenTable, conv_rope_cache, conv_rope_cache_reference
from .norm_head import inverse_row_norm, norm_head, norm_head_loss, norm_head_reference, scaled_logits
from .packed_linear import pack, packed_linear, packed_linear_reference, packing_pays
from .paged_attention import PagedKeys, lengths_on_host, paged_attention, paged_attention_reference
from .quant_linear import Prepared, dequantised, prepare, quant_linear, quant_linear_reference
from .rms_norm import add_rms_norm, rms_norm, rms_norm_reference
from .rope import apply_rope, rope_reference, rope_tables, shared_tables
from .short_conv import short_conv, short_conv_reference, short_conv_step
from .swiglu import swiglu, swiglu_packed, swiglu_reference

__all__ = [
    "PagedKeys",
    "Positions",
    "Prepared",
    "TokenTable",
    "add_rms_norm",
    "apply_rope",
    "attention",
    "attention_reference",
    "conv_rope_cache",
    "conv_rope_cache_reference",
    "dequantised",
    "inverse_row_norm",
    "lengths_on_host",
    "norm_head",
    "norm_head_loss",
    "norm_head_reference",
    "pack",
    "packed_linear",
    "packed_linear_reference",
    "packing_pays",
    "paged_attention",
    "paged_attention_reference",
    "prepare",
    "quant_linear",
    "quant_linear_reference",
    "ragged_attention",
    "rms_norm",
    "rms_norm_reference",
    "rope_reference",
    "rope_tables",
    "scaled_logits",
    "sdpa",
    "shared_tables",
    "short_conv",
    "short_conv_reference",
    "short_conv_step",
    "swiglu",
    "swiglu_packed",
    "swiglu_reference",
]
