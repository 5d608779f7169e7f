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


def find_ragged(positions: Positions, window: int | None, batch: int) -> Ragged | None:
    """The sequences of ``batch`` rows, window layers with the keys that somebody sees; None: they are no such runs.

    Positions may be one row for all. Checked is what the form asks for: where it does not hold, attention is composed.
    """
    query, key = (x.cpu().expand(batch, -1) for x in (positions.query, positions.key))
    packed = positions.query_document is not None and positions.key_document is not None
    if positions.in_order:
        document = positions.key_document if packed else None
        return _documents(query, key, None if document is None else document.cpu(), positions.key.device)
    return None if packed else _rows(query, key, window, positions.key.device)


def _rows(query: Tensor, key: Tensor, window: int | None, device: torch.device) -> Ragged | None:
    """Queries over a cache: one sequence a row, its keys in any order and among empty slots."""
    count = query.shape[1]
    if bool((query.diff(dim=1) != 1).any()):
        return None  # padding between queries: their positions repeat
    first, last = query[:, :1], query[:, -1:]
    oldest = torch.zeros_like(first) if window is None else (first - window + 1).clamp_min(0)
    used = (key >= oldest) & (key <= last)
    order = torch.where(used, key, torch.iinfo(torch.int64).max).argsort(dim=1, stable=True)
    lengths, column = used.sum(1, keepdim=True), torch.arange(key.shape[1])
    kept = column < lengths
    in_turn = key.gather(1, order) == last - lengths + 1 + column  # up to the last query's, without a gap, each once
    if bool((lengths < count).any()) or not bool(in_turn[kept].all()):
        return None
    keys = order + torch.arange(key.shape[0]).unsqueeze(1) * key.shape[1]
    ends = [count * i for i in range(1, query.shape[0] + 1)]
    return Ragged(None, keys[kept].to(device), ends, lengths.flatten().cumsum(0).tolist())


def _documents(query: Tensor, key: Tensor, document: Tensor | None, device: torch.device) -> Ragged | None:
    """Self-attention: the real tokens of each row or document."""
    real = key >= 0
    if not bool(real.any()) or bool((query != key)[real].any()):
        return None
    row = torch.arange(key.shape[0]).unsqueeze(1).expand_as(key)
    owner = torch.stack([row, torch.zeros_like(row) if document is None else document.expand_as(key)], dim=-1)[real]
    border = (owner.diff(dim=0) != 0).any(1)
    pieces, counts = owner.unique_consecutive(dim=0, return_counts=True)
    if bool((key[real].diff() != 1)[~border].any()) or len(pieces.unique(dim=0)) < len(pieces):
        return None  # a jump, or a document in pieces
    rows = None if bool(real.all()) else real.flatten().nonzero().squeeze(1).to(device)
    ends = counts.cumsum(0).tolist()
    return Ragged(rows, rows, ends, ends)
