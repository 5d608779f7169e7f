"""``Positions`` as ragged sequences: the form in which an NPU's attention takes padding, documents and caches.

A sequence is a run of queries at consecutive positions and the keys from some position up to the last query's, in
order. Worked out on the host, once per forward.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .positions import Positions


@dataclass(frozen=True)
class Ragged:
    """Sequences laid end to end.

    Attributes:
        queries, keys: int64, which row of the flattened [batch · T] and [batch · S] stands where; None: all, in order.
        query_ends, key_ends: cumulative lengths of the sequences.
    """

    queries: Tensor | None
    keys: Tensor | None
    query_ends: list[int]
    key_ends: list[int]

    @property
    def single_queries(self) -> bool:
        """Every sequence has one query: a decode step."""
        return self.query_ends == list(range(1, len(self.query_ends) + 1))

    @property
    def longest(self) -> int:
        """Most keys of a sequence."""
        return max(end - start for start, end in zip([0, *self.key_ends], self.key_ends, strict=False))

    def parts(self, at_most: int) -> Iterator[tuple[slice, slice, Ragged]]:
        """So many sequences at a time: their rows of the queries and of the keys in this order, and their ends."""
        row = column = 0
        for start in range(0, len(self.query_ends), at_most):
            rows, columns = (ends[start : start + at_most] for ends in (self.query_ends, self.key_ends))
            ends = [end - row for end in rows], [end - column for end in columns]
            yield slice(row, rows[-1]), slice(column, columns[-1]), Ragged(None, None, *ends)
            row, column = rows[-1], columns[-1]


def whole_rows(batch: int, queries: int, keys: int) -> Ragged:
    """Every row is one sequence whose queries are the last of its keys."""
    ends = range(1, batch + 1)
    return Ragged(None, None, [queries * i for i in ends], [keys * i for i in ends])


def find_ragged(positions: Positions, window: int | None) -> Ragged | None:
    """The sequences of a batch, window layers with the keys that somebody sees; None: they are no such runs."""
    key = positions.key.cpu()
    if positions.in_order:
        return _documents(key, positions.key_document, positions.key.device)
    query = positions.query.cpu()
    if query.shape[1] > 1 and bool((query.diff(dim=1) != 1).any()):
        return None  # padding between queries: their positions repeat
    first = query[:, :1] - window + 1 if window is not None else torch.zeros_like(query[:, :1])
    used = (key >= first.clamp_min(0)) & (key <= query[:, -1:])
    order = torch.where(used, key, torch.iinfo(torch.int64).max).argsort(dim=1, stable=True)
    counts = used.sum(1)
    rows = torch.arange(key.shape[0]).unsqueeze(1) * key.shape[1]
    kept = torch.arange(key.shape[1]).unsqueeze(0) < counts.unsqueeze(1)
    keys = (order + rows)[kept].to(positions.key.device)
    ends = [query.shape[1] * i for i in range(1, query.shape[0] + 1)]
    return Ragged(None, keys, ends, counts.cumsum(0).tolist())


def _documents(key: Tensor, document: Tensor | None, device: torch.device) -> Ragged:
    """Self-attention: the real tokens of each row or document."""
    owner = torch.arange(key.shape[0]).unsqueeze(1).expand_as(key)
    if document is not None:
        owner = owner * (key.shape[1] + 1) + document.cpu()
    real = (key >= 0).flatten()
    ends = owner.flatten()[real].unique_consecutive(return_counts=True)[1].cumsum(0).tolist()
    rows = None if bool(real.all()) else real.nonzero().squeeze(1).to(device)
    return Ragged(rows, rows, ends, ends)
