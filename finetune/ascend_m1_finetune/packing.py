"""Tokenised documents as batches: packed into rows of one length, several documents to a row, or padded.

It knows token ids and their borders, not text and not the model. The model separates the documents of a row by
``position_ids`` (they restart at 0) or by the published ``seqlens`` (end offsets); both are produced here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ascend_m1.errors import InputError

IGNORED = -100  # the label that torch's cross entropy leaves out


@dataclass(frozen=True)
class Document:
    """One tokenised document: ``input_ids`` and ``labels`` of the same length [T]; -100 outside the answers."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class PackedRows:
    """Packed documents as tensors, all int64 and contiguous.

    Shapes:
        input_ids, labels, position_ids: [B, L]; ``position_ids`` restart at 0 with every document and with the
            padding tail, ``labels`` are -100 outside the answers, on every document's first token and in the tail.
        seqlens: [B, n] end offsets of each row's documents, the tail counted as a last one; rows with fewer
            documents repeat L.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    seqlens: Tensor

    def __len__(self) -> int:
        return int(self.input_ids.shape[0])

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        """One row as the model's arguments, each [L]: what is packed is a data set for torch and for the Trainer."""
        return {"input_ids": self.input_ids[row], "labels": self.labels[row], "position_ids": self.position_ids[row]}


def document(parts: Sequence[tuple[Sequence[int], bool]]) -> Document:
    """Join ``(ids, learn)`` parts into one document; only parts with ``learn`` are answers.

    The first token's label is -100 always: nothing before it may predict it.
    """
    ids = tuple(token for tokens, _ in parts for token in tokens)
    labels = tuple(token if learn else IGNORED for tokens, learn in parts for token in tokens)
    return Document(ids, (IGNORED, *labels[1:]) if labels else ())


def pack_documents(documents: Sequence[Document], length: int, pad_id: int = 0) -> PackedRows:
    """Pack documents greedily, each into the row where it leaves the least room.

    Documents keep their order inside a row and are never split or cut.

    Args:
        documents: at least one, each of 1 to ``length`` tokens.
        length: tokens per row, L.
        pad_id: the token of the padding tail.

    Raises:
        InputError: no documents, an empty one, one longer than ``length``, or labels of another length.
    """
    if length <= 0 or not documents:
        raise InputError(f"{len(documents)} documents for rows of {length} tokens: give at least one of each")
    rows: list[list[Document]] = []
    by_room: dict[int, list[int]] = {}  # rows by the tokens that they can still take
    rooms = 0  # the keys of by_room that have rows, as bits: the least one that suffices is found at once
    for index, item in enumerate(documents):
        size = _checked_size(index, item, length)
        enough = rooms >> size
        room = size + (enough & -enough).bit_length() - 1 if enough else length
        if enough:
            row = by_room[room].pop()
            if not by_room[room]:
                rooms ^= 1 << room
        else:
            row = len(rows)
            rows.append([])
        rows[row].append(item)
        by_room.setdefault(room - size, []).append(row)
        rooms |= 1 << room - size
    return _to_tensors(rows, length, pad_id)


def pad_documents(documents: Sequence[Document], pad_id: int = 0) -> dict[str, Tensor]:
    """Documents beside each other, padded at the end to the longest: a data collator for what is not packed.

    Returns:
        input_ids, labels, attention_mask: [B, longest] int64, as the model takes them.
    """
    shape = (len(documents), max(len(item.input_ids) for item in documents))
    batch = {
        "input_ids": torch.full(shape, pad_id, dtype=torch.int64),
        "labels": torch.full(shape, IGNORED, dtype=torch.int64),
        "attention_mask": torch.zeros(shape, dtype=torch.int64),
    }
    for row, item in enumerate(documents):
        size = len(item.input_ids)
        batch["input_ids"][row, :size] = torch.tensor(item.input_ids)
        batch["labels"][row, :size] = torch.tensor(item.labels)
        batch["attention_mask"][row, :size] = 1
    return batch


def _checked_size(index: int, item: Document, length: int) -> int:
    size = len(item.input_ids)
    if len(item.labels) != size:
        raise InputError(f"document {index}: {size} tokens but {len(item.labels)} labels; give one label per token")
    if not 0 < size <= length:
        raise InputError(f"document {index}: {size} tokens do not fit a row of {length}; split it or lengthen the rows")
    return size


def _to_tensors(rows: list[list[Document]], length: int, pad_id: int) -> PackedRows:
    shape = (len(rows), length)
    input_ids = torch.full(shape, pad_id, dtype=torch.int64)
    labels = torch.full(shape, IGNORED, dtype=torch.int64)
    position_ids = torch.zeros(shape, dtype=torch.int64)
    ends: list[list[int]] = []
    for row, items in enumerate(rows):
        ends.append([])
        at = 0
        for item in items:
            end = at + len(item.input_ids)
            input_ids[row, at:end] = torch.tensor(item.input_ids)
            labels[row, at:end] = torch.tensor(item.labels)
            labels[row, at] = IGNORED
            position_ids[row, at:end] = torch.arange(end - at)
            ends[row].append(end)
            at = end
        position_ids[row, at:] = torch.arange(length - at)
        if at < length:
            ends[row].append(length)
    widest = max(len(row_ends) for row_ends in ends)
    seqlens = torch.tensor([row_ends + [length] * (widest - len(row_ends)) for row_ends in ends], dtype=torch.int64)
    return PackedRows(input_ids, labels, position_ids, seqlens)
