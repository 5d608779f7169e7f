"""Kernels with the faults that the suite is there to find, to show that it finds them."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def masked_scatter(rows, slots, cache, tokens, width: tl.constexpr, block: tl.constexpr):
    """Rows to slots, all at once, where the slot is not negative."""
    token = tl.program_id(0) * block + tl.arange(0, block)
    lane = tl.arange(0, width)
    slot = tl.load(slots + token, mask=token < tokens, other=-1)
    row = tl.load(rows + token[:, None] * width + lane[None, :], mask=(token < tokens)[:, None], other=0.0)
    tl.store(cache + slot[:, None] * width + lane[None, :], row, mask=(slot >= 0)[:, None])


@triton.jit
def masked_row_above(rows, out, tokens, width: tl.constexpr, block: tl.constexpr):
    """Each row's predecessor; the mask that should keep row −1 from being read does not once it is lowered."""
    token = tl.program_id(0) * block + tl.arange(0, block)
    lane = tl.arange(0, width)
    known = (token > 0) & (token < tokens)
    above = tl.load(rows + (token[:, None] - 1) * width + lane[None, :], mask=known[:, None], other=0.0)
    tl.store(out + token[:, None] * width + lane[None, :], above, mask=(token < tokens)[:, None])


@triton.jit
def copy_row(rows, out, width: tl.constexpr):
    """One row, whatever the size of the tensors."""
    lane = tl.arange(0, width)
    tl.store(out + lane, tl.load(rows + lane))


@triton.jit
def too_large(rows, out, height: tl.constexpr, width: tl.constexpr):
    """A tile sorted along an axis needs more than fits on chip."""
    tile = tl.arange(0, height)[:, None] * width + tl.arange(0, width)[None, :]
    x = tl.load(rows + tile)
    tl.store(out + tile, x * tl.sum(x, 1)[:, None] + tl.sum(x, 0)[None, :])
