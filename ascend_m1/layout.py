"""Where each token of a batch stands: real or padding, its position, its document. Worked out once per forward.

Padding, packed documents and chunks of a longer prompt all become the same few tensors here, so the layers below need
no case distinctions. Positions count the real tokens of a sequence from 0, whatever columns they stand in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ascend_m1_ops import Positions

from .errors import InputError


@dataclass(frozen=True)
class Layout:
    """One forward's tokens, [batch, columns].

    Attributes:
        positions: [batch, columns] int64, position of each token in its sequence or document.
        rope_positions: the same, or the caller's own position_ids.
        lengths: [batch] int64, tokens that the cache held before.
        real: [batch, columns] bool, False for padding; None: no padding.
        document: [batch, columns] int64, index of the packed document; None: one sequence a row.
        cu_seqlens: int64, borders of rows and documents in the flattened batch, for the convolution.
        continues: the cache holds earlier tokens.
    """

    positions: Tensor
    rope_positions: Tensor
    lengths: Tensor
    real: Tensor | None
    document: Tensor | None
    cu_seqlens: Tensor
    continues: bool
    _slots: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict, compare=False, repr=False)
    _shared: dict[object, Positions] = field(default_factory=dict, compare=False, repr=False)

    @property
    def columns(self) -> int:
        """Columns of this forward, padding included."""
        return int(self.positions.shape[1])

    @property
    def new_lengths(self) -> Tensor:
        """[batch] tokens after this forward."""
        if self.real is None:
            return self.lengths + self.columns
        return self.lengths + self.real.sum(1)

    @property
    def key_positions(self) -> Tensor:
        """[batch, columns]: positions as keys, -1 for padding."""
        return self.positions if self.real is None else self.positions.masked_fill(~self.real, -1)

    def among_themselves(self) -> Positions | None:
        """Who sees whom without earlier tokens; None: plain causal."""
        if self.real is None and self.document is None:
            return None
        return self.share(
            "self",
            lambda: Positions(
                self.positions,
                self.key_positions,
                self.document,
                self.document,
                in_order=True,
                gapless=self.real is None,
            ),
        )

    def share(self, key: object, make: Callable[[], Positions]) -> Positions:
        """``make()`` once per forward: layers of the same kind use the same positions and masks."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    def close_gaps(self, kv: Tensor, state: Tensor) -> Tensor:
        """Put into each padding column what the last real token before it had (the cached state before the first).

        The convolution then finds the right predecessor although it only looks one column back.
        kv: [batch, columns, 2, kv_heads, head_dim]; state: [batch, 2, kv_heads, head_dim].
        """
        if self.real is None:
            return kv
        columns = torch.arange(self.columns, device=kv.device)
        source = torch.where(self.real, columns, -1).cummax(1).values
        index = source.clamp_min(0).view(*source.shape, 1, 1, 1).expand_as(kv)
        return torch.where((source >= 0).view(*source.shape, 1, 1, 1), kv.gather(1, index), state.unsqueeze(1))

    def slots(self, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, columns and ring slots (position % capacity) of the tokens to store: the last ``capacity`` of a row."""
        if capacity not in self._slots:
            self._slots[capacity] = self._find_slots(capacity)
        return self._slots[capacity]

    def _find_slots(self, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
        device = self.positions.device
        if self.real is None:
            rows = torch.arange(self.positions.shape[0], device=device).unsqueeze(1)
            columns = torch.arange(max(self.columns - capacity, 0), self.columns, device=device).unsqueeze(0)
        else:
            kept = self.real & (self.positions >= self.new_lengths.unsqueeze(1) - capacity)
            rows, columns = kept.nonzero(as_tuple=True)
        return rows, columns, self.positions[rows, columns] % capacity


def make_layout(
    batch: int,
    columns: int,
    device: torch.device,
    *,
    lengths: Tensor | None = None,
    past_columns: int = 0,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    seqlens: Tensor | None = None,
) -> Layout:
    """Work out the layout of a [batch, columns] input.

    Args:
        batch, columns: shape of the input.
        device: of the input.
        lengths: [batch] tokens in the cache; None: nothing cached.
        past_columns: columns that the cache has seen, padding included.
        attention_mask: [batch, past_columns + columns], 0 for padding; left, right or between tokens.
        position_ids: [batch or 1, columns]; without a cache, a jump inside a row begins a packed document.
        seqlens: [batch, n] end offsets of the packed documents in each row, as published.

    Raises:
        InputError: a shape does not fit, or packed documents come with a cache that already holds tokens.
    """
    real = _real_tokens(attention_mask, batch, columns, past_columns)
    continues = past_columns > 0
    if seqlens is not None and continues:
        raise InputError("seqlens: packed documents cannot continue a cache; call the model without cache")
    if position_ids is not None:
        position_ids = _checked_positions(position_ids, batch, columns)
    if lengths is None:
        lengths = torch.zeros(batch, dtype=torch.int64, device=device)
    starts = None
    if seqlens is not None:
        starts = _starts_of_seqlens(seqlens, batch, columns)
    elif position_ids is not None and not continues:
        starts = _starts_of_restarts(position_ids, real)
    if starts is not None and not bool(starts[:, 1:].any()):
        starts = None
    positions = _count(lengths, columns, real, starts)
    return Layout(
        positions=positions,
        rope_positions=positions if position_ids is None else position_ids,
        lengths=lengths,
        real=real,
        document=None if starts is None else starts.cumsum(1),
        cu_seqlens=_borders(batch, columns, starts, device),
        continues=continues,
    )


def packed_ends(seqlens: Tensor | None, cu_seqlens: Tensor | None, cu_seq_lens_q: Tensor | None) -> Tensor | None:
    """End offsets [batch, n] of packed documents, from whichever form was given.

    cu_seqlens and cu_seq_lens_q are the borders [documents + 1] of a single packed row, from 0.
    """
    borders = cu_seqlens if cu_seqlens is not None else cu_seq_lens_q
    if borders is None or seqlens is not None:
        return seqlens
    if borders.dim() != 1 or borders.shape[0] < 2 or int(borders[0]) != 0:
        raise InputError("cu_seqlens must be [documents + 1] and begin with 0")
    return borders[1:].unsqueeze(0)


def _real_tokens(mask: Tensor | None, batch: int, columns: int, past_columns: int) -> Tensor | None:
    if mask is None:
        return None
    if mask.dim() != 2 or mask.shape != (batch, past_columns + columns):
        raise InputError(
            f"attention_mask has shape {list(mask.shape)}: give [{batch}, {past_columns + columns}] "
            "(batch, cached and new columns) of ones and zeros"
        )
    real = mask[:, past_columns:].bool()
    return None if bool(real.all()) else real


def _checked_positions(position_ids: Tensor, batch: int, columns: int) -> Tensor:
    if position_ids.dim() != 2 or position_ids.shape[0] not in (1, batch) or position_ids.shape[1] != columns:
        raise InputError(f"position_ids has shape {list(position_ids.shape)}: give [{batch}, {columns}]")
    return position_ids.expand(batch, columns)


def _starts_of_seqlens(seqlens: Tensor, batch: int, columns: int) -> Tensor:
    seqlens = seqlens.long()
    ordered = seqlens.dim() == 2 and seqlens.shape[0] == batch and bool((seqlens.diff(dim=1) >= 0).all())
    if not ordered or bool((seqlens < 0).any()) or bool((seqlens > columns).any()):
        raise InputError(
            f"seqlens must be [{batch}, n], each row the rising end offsets of its documents, at most {columns}"
        )
    starts = torch.zeros(batch, columns + 1, dtype=torch.bool, device=seqlens.device)
    starts.scatter_(1, seqlens, True)
    return starts[:, :columns]


def _starts_of_restarts(position_ids: Tensor, real: Tensor | None) -> Tensor:
    jumps = torch.zeros_like(position_ids, dtype=torch.bool)
    jumps[:, 1:] = position_ids.diff(dim=1) != 1
    if real is None:
        return jumps
    jumps[:, 1:] &= real[:, :-1]  # after padding, only position 0 tells of a new document
    has_predecessor = real.cumsum(1) > 1
    return real & has_predecessor & (jumps | (position_ids == 0))


def _count(lengths: Tensor, columns: int, real: Tensor | None, starts: Tensor | None) -> Tensor:
    """Position of each column: real tokens before it in its sequence or document."""
    ones = torch.ones(lengths.shape[0], columns, dtype=torch.int64, device=lengths.device)
    counted = ones if real is None else real.long()
    before = counted.cumsum(1) - counted
    if starts is not None:
        before = before - torch.where(starts, before, 0).cummax(1).values
    if real is not None:  # a padding column takes the position of the token before it
        before = (before - (~real).long()).clamp_min(0)
    return before + lengths.unsqueeze(1)


def _borders(batch: int, columns: int, starts: Tensor | None, device: torch.device) -> Tensor:
    if starts is None:
        return torch.arange(batch + 1, device=device) * columns
    flat = starts.clone()
    flat[:, 0] = True
    inner = flat.flatten().nonzero().squeeze(1)
    return torch.cat([inner, inner.new_tensor([batch * columns])])
