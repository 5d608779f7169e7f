"""A linear layer whose weight was brought into the processor's own order of blocks beforehand.

    y = x · Wᵀ

The same numbers as ``torch.nn.functional.linear``, which has to read rows as they lie: with few rows of x, as in
decoding, it is slower by a factor that depends on the processor. Source: oneDNN's documentation, "Memory Format
Propagation".
"""

from __future__ import annotations

from .kernels import pack, packed_linear, packing_pays
from .reference import packed_linear_reference

__all__ = ["pack", "packed_linear", "packed_linear_reference", "packing_pays"]
