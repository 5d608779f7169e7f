"""Storage addressed by position: the token at position p of a row lives in slot p % capacity."""

from __future__ import annotations

import torch
from torch import Tensor

from .layout import Layout

_GROWTH = 1.25
_ROUND = 64


class Ring:
    """Storage [batch, capacity, ...] in which position p lives in slot p % capacity.

    limit: the most slots ever needed; None: as many as there are tokens.
    fixed: allocate this many at once (static cache); None: grow.
    soft_limit: growth does not overshoot this length before it is exceeded.
    """

    def __init__(self, limit: int | None, fixed: int | None, soft_limit: int) -> None:
        self.limit, self.fixed, self.soft_limit = limit, fixed, soft_limit
        self.data: Tensor | None = None

    @property
    def capacity(self) -> int:
        return 0 if self.data is None else int(self.data.shape[1])

    def reserve(self, tokens: int, like: Tensor) -> None:
        """Make room for ``tokens`` positions of values shaped as ``like`` [batch, any, ...]."""
        wanted = tokens if self.fixed is None else self.fixed
        wanted = wanted if self.limit is None else min(wanted, self.limit)
        if wanted <= self.capacity:
            return
        if self.fixed is None and self.capacity:
            wanted = self._grown(wanted)
        data = like.new_zeros(like.shape[0], wanted, *like.shape[2:])
        if self.data is not None:  # it has not wrapped yet: slot = position under both capacities
            data[:, : self.capacity] = self.data
        self.data = data

    def drop_unless_fits(self, like: Tensor) -> None:
        """Forget storage of another batch size, dtype or device: only for a sequence's start, when it holds nothing."""
        if self.data is None:
            return
        kept = (self.data.shape[0], self.data.dtype, self.data.device)
        if kept != (like.shape[0], like.dtype, like.device):
            self.data = None

    def _grown(self, tokens: int) -> int:
        grown = -(-int(tokens * _GROWTH) // _ROUND) * _ROUND
        if tokens <= self.soft_limit:
            grown = min(grown, self.soft_limit)
        return grown if self.limit is None else min(grown, self.limit)

    def write(self, values: Tensor, layout: Layout) -> None:
        """Store the new tokens' values [batch, columns, ...]; gradients stop here."""
        assert self.data is not None
        rows, columns, slots = layout.slots(self.capacity)
        self.data[rows, slots] = values.detach()[rows, columns]

    def held(self, lengths: Tensor) -> Tensor:
        """Position in each slot when rows hold ``lengths`` [batch] tokens: [batch, capacity], -1 if empty."""
        last = lengths.unsqueeze(1) - 1
        slots = torch.arange(self.capacity, device=lengths.device)
        return (last - (last - slots) % self.capacity).clamp_min(-1)

    def select(self, rows: Tensor) -> None:
        if self.data is not None:
            self.data = self.data.index_select(0, rows.to(self.data.device))
