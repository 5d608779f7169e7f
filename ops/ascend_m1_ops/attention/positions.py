"""Which query sees which key, as data: the position and the document of each.

Query i sees key j if and only if

    0 <= position_j <= position_i,   position_i - position_j < window,   document_i == document_j

so causality, sliding windows, padding, packed documents, and caches whose slots are in any order are one rule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Positions:
    """Positions of queries [batch or 1, T] and keys [batch or 1, S], int64; -1 marks a key that nobody sees.

    ``query_document`` and ``key_document`` (same shapes, int64) separate packed documents; None: one document.
    ``in_order``: keys are the queries themselves (T == S, self-attention without a cache), so that a key in a later
    column is never visible. A query whose own key is -1 is padding then: what comes out for it means nothing.
    ``gapless``: there is no padding either, so that a key ``window`` columns away is hidden, too. Both only save work.
    """

    query: Tensor
    key: Tensor
    query_document: Tensor | None = None
    key_document: Tensor | None = None
    in_order: bool = False
    gapless: bool = False
    _known: dict[object, Any] = field(default_factory=dict, compare=False, repr=False)

    def mask(self, window: int | None, rows: slice = slice(None), columns: slice = slice(None)) -> Tensor:
        """True where visible: [batch, 1, T, S], or the given rows and columns of it.

        The whole mask is kept: the layers of one kind share it.
        """
        shape = (self.query.shape[1], self.key.shape[1])
        if (rows.indices(shape[0])[:2], columns.indices(shape[1])[:2]) != ((0, shape[0]), (0, shape[1])):
            return self._visible(window, rows, columns)
        return self.once(("mask", window), lambda: self._visible(window, rows, columns))

    def once(self, key: object, make: Callable[[], T]) -> T:
        """``make()`` at the first call with this key, its result at every other: layers share it."""
        if key not in self._known:
            self._known[key] = make()
        found: T = self._known[key]
        return found

    def _visible(self, window: int | None, rows: slice, columns: slice) -> Tensor:
        query, key = self.query[:, rows, None], self.key[:, None, columns]
        visible = (key >= 0) & (key <= query)
        if window is not None:
            visible &= query - key < window
        if self.query_document is not None and self.key_document is not None:
            visible &= self.query_document[:, rows, None] == self.key_document[:, None, columns]
        return visible.unsqueeze(1)

    @staticmethod
    def aligned(queries: int, keys: int, device: torch.device | str) -> Positions:
        """The queries are the last ones of ``keys`` tokens in order: plain causal attention, batch 1 (broadcasts)."""
        key = torch.arange(keys, device=device)
        return Positions(key[keys - queries :].unsqueeze(0), key.unsqueeze(0))
