"""The cache of one batch: K/V of global layers, window-sized rings, the convolution's last raw k and v.

One rule addresses everything: the token at position p of a row lives in slot p % capacity. A global layer's capacity
grows with the sequence; a window layer's stops at the window; the convolution needs the last token only. Each ring has
``rollback`` slots to spare, so that as many tokens can be taken back (assisted decoding) before their predecessors are
overwritten. Rows count their own tokens, so padding takes no slot.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from ascend_m1_ops import Positions

from .configuration_baichuan_m1 import BaichuanM1Config, LayerSpec
from .errors import CacheError
from .layout import Layout
from .ring import Ring

DEFAULT_ROLLBACK = 24  # one round of assisted decoding: 20 candidates by default in transformers
ASSISTED_ROLLBACK = 256  # what generate reserves with an assistant, which decides itself how many candidates it offers


class LayerCache(CacheLayerMixin):
    """One layer's share: ``raw`` for the convolution, ``k`` and ``v`` (convolved, k rotated) for attention."""

    def __init__(self, spec: LayerSpec, rollback: int, max_length: int | None, soft_limit: int) -> None:
        super().__init__()
        self.spec, self.rollback = spec, rollback
        limit = None if spec.window is None else spec.window + rollback
        self.raw = Ring(1 + rollback, None, soft_limit)
        self.k = Ring(limit, max_length, soft_limit)
        self.v = Ring(limit, max_length, soft_limit)
        self.is_sliding = spec.window is not None

    @property
    def rings(self) -> tuple[Ring, Ring, Ring]:
        return self.raw, self.k, self.v

    def conv_state(self, kv: Tensor, layout: Layout) -> Tensor:
        """Raw k and v of each row's last token, zeros for an empty row; then remember the new ones.

        kv: [batch, columns, 2, kv_heads, head_dim], raw. Returns [batch, 2, kv_heads, head_dim].
        """
        self._reserve(self.raw, 1 + self.rollback, kv, layout)
        assert self.raw.data is not None
        if not layout.continues:
            state = kv.new_zeros(kv.shape[0], *kv.shape[2:])
        else:
            rows = torch.arange(kv.shape[0], device=kv.device)
            state = self.raw.data[rows, (layout.lengths - 1) % self.raw.capacity]
            state = state * (layout.lengths > 0).view(-1, 1, 1, 1)
        self.raw.write(kv, layout)
        return state

    def extend(
        self, k: Tensor, v: Tensor, layout: Layout, tokens: int, ragged: bool
    ) -> tuple[Tensor, Tensor, Positions | None]:
        """Store k and v [batch, columns, kv_heads, head_dim]; return what the new queries attend to.

        tokens: most tokens a row can hold afterwards. ragged: rows may differ in length.
        """
        for ring, values in ((self.k, k), (self.v, v)):
            self._reserve(ring, tokens, values, layout)
        if not layout.continues:
            self._store(k, v, layout)
            return k, v, layout.among_themselves()
        evicts = self.spec.window is not None and layout.columns > self.rollback + 1
        if evicts or k.requires_grad:
            return self._beside(k, v, layout)
        self._store(k, v, layout)
        assert self.k.data is not None
        assert self.v.data is not None
        wrapped = self.k.capacity < tokens
        count = self.k.capacity if wrapped else tokens
        if not ragged and not wrapped:
            return self.k.data[:, :count], self.v.data[:, :count], None
        positions = layout.share(
            (self.k.capacity, count),
            lambda: Positions(layout.positions, self.k.held(layout.new_lengths)[:, :count]),
        )
        return self.k.data[:, :count], self.v.data[:, :count], positions

    @staticmethod
    def _reserve(ring: Ring, tokens: int, values: Tensor, layout: Layout) -> None:
        if not layout.continues:  # what a reset left behind may be of another batch size
            ring.drop_unless_fits(values)
        ring.reserve(tokens, values)

    def _beside(self, k: Tensor, v: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Positions]:
        """Old keys and new ones side by side: for chunks that would overwrite what their first queries need."""
        assert self.k.data is not None
        assert self.v.data is not None
        positions = layout.share(
            ("beside", self.k.capacity),
            lambda: Positions(layout.positions, torch.cat([self.k.held(layout.lengths), layout.key_positions], dim=1)),
        )
        both = torch.cat([self.k.data, k], dim=1), torch.cat([self.v.data, v], dim=1)
        self._store(k, v, layout)
        return (*both, positions)

    def _store(self, k: Tensor, v: Tensor, layout: Layout) -> None:
        self.k.write(k, layout)
        self.v.write(v, layout)

    # What transformers asks of a layer. M1Cache keeps the length for all layers.
    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise CacheError("M1Cache allocates in the model's forward pass; early initialization is not supported")

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        raise CacheError("M1Cache belongs to Baichuan-M1: use transformers' DynamicCache for another model")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length + self.get_seq_length(), 0

    def get_seq_length(self) -> int:
        return 0 if self.k.data is None else self.k.capacity

    def get_max_length(self) -> int:
        return -1 if self.k.fixed is None else self.k.fixed

    get_max_cache_shape = get_max_length  # its name before transformers 5.16


class M1Cache(Cache):
    """Everything that a batch of sequences must remember between forwards.

    Args:
        config: of the model.
        max_length: tokens to allocate for at once (static cache); None: grow as needed.
        rollback: tokens that ``crop`` can take back at any time.
    """

    layers: list[LayerCache]

    def __init__(
        self, config: BaichuanM1Config, max_length: int | None = None, rollback: int = DEFAULT_ROLLBACK
    ) -> None:
        if max_length is not None and max_length <= 0:
            raise CacheError(f"max_length={max_length}: give a positive number of tokens")
        if rollback < 0:
            raise CacheError(f"rollback={rollback}: give 0 or more tokens")
        soft_limit = config.max_position_embeddings
        super().__init__(layers=[LayerCache(spec, rollback, max_length, soft_limit) for spec in config.layer_specs])
        self.rollback, self.max_length = rollback, max_length
        self.unfinished = False  # a forward has begun to write and not ended
        self.columns = 0  # seen so far, padding included
        self.peak = 0  # the most columns ever seen: what a rollback is measured against
        self.lengths: Tensor | None = None  # [batch] real tokens
        self.real: Tensor | None = None  # [batch, columns], only if there was padding

    def extend(self, index: int, k: Tensor, v: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Positions | None]:
        """``LayerCache.extend`` of layer ``index``."""
        ragged = self.real is not None or layout.real is not None
        return self.layers[index].extend(k, v, layout, self.columns + layout.columns, ragged)

    def lengths_of(self, batch: int) -> Tensor | None:
        """[batch] tokens held; None: empty. Raises CacheError if the cache holds another number of rows."""
        if self.lengths is not None and self.lengths.shape[0] != batch:
            raise CacheError(f"the cache holds {self.lengths.shape[0]} rows, the input has {batch}: use a new cache")
        return self.lengths

    def begin(self, columns: int) -> None:
        """A forward over so many columns starts; ``advance`` ends it.

        Raises:
            CacheError: there is no room, or a forward before failed halfway and may have overwritten what it needed.
        """
        if self.unfinished:
            raise CacheError("an earlier forward failed halfway and left this cache unusable: reset() it or build one")
        if self.max_length is not None and self.columns + columns > self.max_length:
            raise CacheError(
                f"cache max_length={self.max_length} is full: {self.columns + columns} tokens do not fit; "
                "build a longer one"
            )
        self.unfinished = True

    def advance(self, layout: Layout) -> None:
        """Count the tokens of a finished forward."""
        self.unfinished = False
        if self.real is not None or layout.real is not None:
            shape = (layout.lengths.shape[0], self.columns)
            old = torch.ones(shape, dtype=torch.bool, device=layout.lengths.device) if self.real is None else self.real
            new = torch.ones_like(layout.positions, dtype=torch.bool) if layout.real is None else layout.real
            self.real = torch.cat([old, new], dim=1)
        self.lengths = layout.new_lengths
        self.columns += layout.columns
        self.peak = max(self.peak, self.columns)

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last columns: -n removes n; a positive number is the length to keep (the older convention).

        Raises:
            CacheError: more than ``rollback`` columns back from the longest point reached.
        """
        keep = tokens_to_remove if tokens_to_remove > 0 else max(self.columns + tokens_to_remove, 0)
        if keep >= self.columns or self.lengths is None:
            return
        if keep == 0:
            self.reset()
            return
        if self.peak - keep > self.rollback:
            raise CacheError(
                f"cannot take back {self.peak - keep} tokens: the cache keeps {self.rollback}; "
                f"build it with rollback={self.peak - keep} or more"
            )
        if self.real is None:
            self.lengths = self.lengths - (self.columns - keep)
        else:
            self.lengths = self.lengths - self.real[:, keep:].sum(1)
            self.real = self.real[:, :keep]
        self.columns = keep

    def select(self, rows: Tensor) -> None:
        """Keep (and repeat, and reorder) rows: int64 [new batch]."""
        if self.lengths is None:
            return
        for layer in self.layers:
            for ring in layer.rings:
                ring.select(rows)
        self.lengths = self.lengths.index_select(0, rows.to(self.lengths.device))
        if self.real is not None:
            self.real = self.real.index_select(0, rows.to(self.real.device))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.lengths is not None:
            self.select(torch.arange(self.lengths.shape[0], device=self.lengths.device).repeat_interleave(repeats))

    def reset(self) -> None:
        """Forget everything, keep the allocation."""
        self.columns = self.peak = 0
        self.lengths = self.real = None
        self.unfinished = False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns seen, padding included: what transformers slices its inputs by."""
        return self.columns

    @property
    def nbytes(self) -> int:
        """Bytes allocated for all layers."""
        tensors = (ring.data for layer in self.layers for ring in layer.rings)
        return sum(data.nbytes for data in tensors if data is not None)

    @property
    def is_croppable(self) -> bool:
        return True

    @property
    def is_initialized(self) -> bool:
        return self.lengths is not None
