"""The cache for serving: blocks for global layers, a ring for window layers, the convolution's last raw k and v.

Everything is one allocation made at the start, so that a captured graph finds it where it was. The cache knows slots
and blocks; which sequence owns which is the caller's business (``steps.py`` turns it into tensors).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .configuration_baichuan_m1 import BaichuanM1Config, LayerSpec
from .errors import CacheError

BLOCK_SIZE = 128  # the one block size that every documented rule of the NPU's paged attention allows
FILLERS = BLOCK_SIZE  # sequences that fill a batch up to its graph's size: each writes to a slot of its own


@dataclass(frozen=True)
class PagedLayer:
    """One layer's share.

    k, v: [blocks, BLOCK_SIZE, kv_heads, head_dim], convolved, k rotated.
    state: [rows, 2, kv_heads, head_dim], raw k and v of the last token.
    """

    k: Tensor
    v: Tensor
    state: Tensor


class PagedCache:
    """Storage for ``rows`` sequences at a time.

    A global layer has ``blocks`` blocks, shared out by a block table. A window layer has a ring for every row: the
    token at position p of row r lies in slot p % window of the row's own blocks. One block more than asked for,
    and ``FILLERS`` rows without a ring, take what fills a batch up to its graph's size.

    Args:
        config: of the model.
        rows: sequences held at the same time.
        blocks: of a global layer, for these sequences.
        dtype, device: of the storage.
        max_length: tokens of the longest sequence: a ring needs no more slots; None: it may be any.
    """

    def __init__(
        self,
        config: BaichuanM1Config,
        rows: int,
        blocks: int,
        dtype: torch.dtype,
        device: torch.device | str,
        max_length: int | None = None,
    ) -> None:
        if rows < 1 or blocks < 1:
            raise CacheError(f"rows={rows}, blocks={blocks}: give at least one of each")
        self.rows, self.blocks = rows, blocks
        self.block_ids, self.vocab_size = frozenset(range(blocks)), config.vocab_size  # what a step is checked against
        window = next((spec.window for spec in config.layer_specs if spec.window is not None), None)
        self.window = min(window, max_length) if window and max_length else window
        self.ring_blocks = 0 if self.window is None else -(-self.window // BLOCK_SIZE)

        def layer(spec: LayerSpec) -> PagedLayer:
            count = blocks if spec.window is None else rows * self.ring_blocks
            shape = (count + 1, BLOCK_SIZE, spec.kv_heads, spec.head_dim)
            k, v = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
            state = torch.zeros(rows + FILLERS, 2, *shape[2:], dtype=dtype, device=device)
            return PagedLayer(k, v, state)

        self.layers = [layer(spec) for spec in config.layer_specs]

    @property
    def nbytes(self) -> int:
        """Bytes allocated for all layers."""
        return sum(tensor.nbytes for layer in self.layers for tensor in (layer.k, layer.v, layer.state))

    def ring_slot(self, row: int, position: int) -> int:
        """Slot of a token in a window layer's storage; 0 if there are no window layers."""
        if self.window is None:
            return 0
        if row >= self.rows:  # a filler
            return self.rows * self.ring_blocks * BLOCK_SIZE + row - self.rows
        return row * self.ring_blocks * BLOCK_SIZE + position % self.window

    def ring_table(self, row: int) -> list[int]:
        """Blocks of a row's ring."""
        if row >= self.rows:
            return [self.rows * self.ring_blocks] * self.ring_blocks
        return list(range(row * self.ring_blocks, (row + 1) * self.ring_blocks))
