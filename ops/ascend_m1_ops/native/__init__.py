"""Products for x86-64 processors with AVX512-BF16, compiled on first use: bfloat16 rows, weights of bfloat16 or int4.
By AMX where there is AMX.

Neither oneDNN nor torch reads such weights as fast as memory gives them when rows are few, as in decoding. Without a
compiler or the instructions their products are used (``available``).
"""

from __future__ import annotations

from .bfloat16 import bfloat16_layout, bfloat16_linear
from .int4 import GROUPS, int4_layout, int4_linear
from .library import INPUT_BLOCK, ROW_BLOCK, TILE_INPUTS, available, uses_tiles

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
    "uses_tiles",
]
