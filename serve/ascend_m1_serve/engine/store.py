"""What is kept of a sequence outside its own rows: for others that begin alike, and while it is swapped out.

A block of the pool holds keys and values of global layers. To go on from the end of a block a sequence needs two things
more: the window layers' last keys and values, which a ring overwrites, and the convolution's state, the raw k and v of
the last token, which cannot be computed from what is cached. ``PrefixStore`` keeps both beside each block, so that a
request that finds its prompt's beginning goes on with the very bits that were computed for the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ascend_m1.paged import BLOCK_SIZE, PagedCache


class PrefixStore:
    """Window layers' keys and values, and every layer's convolution state, per block of the pool.

    Args:
        cache: whose blocks these are; the store is as large as a cache without windows would be.
    """

    def __init__(self, cache: PagedCache, windows: Sequence[bool]) -> None:
        self.cache = cache
        self.window_layers = [layer for layer, window in zip(cache.layers, windows, strict=True) if window]
        self.rings = [
            tuple(ring.new_zeros(cache.blocks, *ring.shape[1:]) for ring in (layer.k, layer.v))
            for layer in self.window_layers
        ]
        self.states = [layer.state.new_zeros(cache.blocks, *layer.state.shape[1:]) for layer in cache.layers]

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(tensor.nbytes for tensors in (*self.rings, self.states) for tensor in tensors)

    def save_block(self, row: int, block: int, index: int, held: int) -> None:
        """Keep the window layers' share of a sequence's block of that index, as far as its ring still has it."""
        if self.cache.window is None:
            return
        first = max(index * BLOCK_SIZE, held - self.cache.window)
        positions = range(first, (index + 1) * BLOCK_SIZE)
        source = self._slots(row, positions)
        target = self._index([block * BLOCK_SIZE + p % BLOCK_SIZE for p in positions])
        for layer, kept in zip(self.window_layers, self.rings, strict=True):
            for ring, copy in zip((layer.k, layer.v), kept, strict=True):
                copy.flatten(0, 1)[target] = ring.flatten(0, 1)[source]

    def save_state(self, row: int, block: int) -> None:
        """Keep the convolution's state of a sequence whose last token is the block's last."""
        for layer, states in zip(self.cache.layers, self.states, strict=True):
            states[block] = layer.state[row]

    def restore(self, row: int, blocks: Sequence[int]) -> None:
        """Make a row what it was when these blocks were full and nothing more was known."""
        for layer, states in zip(self.cache.layers, self.states, strict=True):
            layer.state[row] = states[blocks[-1]]
        if self.cache.window is None:
            return
        held = len(blocks) * BLOCK_SIZE
        positions = range(max(0, held - self.cache.window), held)
        source = self._index([blocks[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for p in positions])
        target = self._slots(row, positions)
        for layer, kept in zip(self.window_layers, self.rings, strict=True):
            for ring, copy in zip((layer.k, layer.v), kept, strict=True):
                ring.flatten(0, 1)[target] = copy.flatten(0, 1)[source]

    def _slots(self, row: int, positions: Sequence[int]) -> Tensor:
        return self._index([self.cache.ring_slot(row, p) for p in positions])

    def _index(self, numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self.states[0].device)


@dataclass(frozen=True)
class Swapped:
    """A sequence's whole share of the cache, in the host's memory.

    parts: per layer k and v [blocks, 128, kv_heads, head_dim], of the pool's blocks or of the ring's, and the state.
    """

    parts: list[tuple[Tensor, Tensor, Tensor]]


def swap_out(cache: PagedCache, windows: Sequence[bool], row: int, blocks: Sequence[int]) -> Swapped:
    """Copy a sequence's share to the host."""
    own, ring = list(blocks), cache.ring_table(row)
    return Swapped(
        [
            (layer.k[ids].cpu(), layer.v[ids].cpu(), layer.state[row].cpu().clone())
            for layer, window in zip(cache.layers, windows, strict=True)
            for ids in [ring if window else own]
        ]
    )


def swap_in(cache: PagedCache, windows: Sequence[bool], row: int, blocks: Sequence[int], swapped: Swapped) -> None:
    """Copy it back, to another row and other blocks; there may be more blocks than there were."""
    ring = cache.ring_table(row)
    for layer, window, (k, v, state) in zip(cache.layers, windows, swapped.parts, strict=True):
        ids = ring if window else list(blocks)[: len(k)]
        layer.k[ids], layer.v[ids] = k.to(layer.k.device), v.to(layer.v.device)
        layer.state[row] = state.to(layer.state.device)
