"""Compiled on first use for x86-64 processors with AVX512-BF16: products of bfloat16 rows with weights of bfloat16 or
int4, by AMX where there is AMX, and what lies between them in a decode step (``step``).

Neither oneDNN nor torch reads such weights as fast as memory gives them when rows are few, as in decoding. Without a
compiler or the instructions torch computes (``available``).
"""

from __future__ import annotations

from .bfloat16 import bfloat16_layout, bfloat16_linear
from .int4 import GROUPS, int4_layout, int4_linear
from .library import INPUT_BLOCK, ROW_BLOCK, TILE_INPUTS, available, supported, uses_tiles

__all__ = [
    "GROUPS",
    "INPUT_BLOCK",
    "ROW_BLOCK",
    "TILE_INPUTS",
    "available",
    "bfloat16_layout",
    "bfloat16_linear",
    "int4_layout",
    "int4_linear",
    "supported",
    "uses_tiles",
]
