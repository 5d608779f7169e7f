"""What one forward over a ``PagedCache`` needs to know, as tensors: made on the host from plain numbers, once per step.

A step is a list of chunks: for each sequence its row, its blocks, how many tokens it holds already and the new ones.
They are checked here, before anything is written. Nothing here knows the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ascend_m1_ops import PagedKeys, TokenTable

from .errors import CacheError, InputError
from .paged import BLOCK_SIZE, PagedCache


@dataclass(frozen=True)
class Chunk:
    """New tokens of one sequence.

    row: of the cache's rows.
    blocks: of global layers, enough for held + new tokens.
    held: tokens in the cache.
    tokens: the new ones' ids.
    adapter: slot of its adapter; 0: none.
    """

    row: int
    blocks: Sequence[int]
    held: int
    tokens: Sequence[int]
    adapter: int = 0

    @property
    def length(self) -> int:
        """Tokens after the step."""
        return self.held + len(self.tokens)


@dataclass(frozen=True)
class Window:
    """Window layers in a prefill step: their keys in order, old ones from the ring first, then the new ones.

    size: rows of the buffer. read_from, read_to: int64, ring slots and the buffer's rows of old keys. write_from,
    write_to: int64, what goes back into the ring. ends: cumulative keys of the sequences.
    """

    size: int
    read_from: Tensor
    read_to: Tensor
    write_from: Tensor
    write_to: Tensor
    ends: list[int]


@dataclass(frozen=True)
class Step:
    """One forward's input.

    tokens: int64 [T]. adapters: int32 [T], each token's slot. global_table, window_table: what the fused operator
    needs, slots of either kind of layer. global_keys, window_keys: what paged attention needs. query_ends: None in a
    decode step. last: int64, the index of each sequence's last token; None: all. window: None in a decode step.
    longest: tokens of the longest sequence, for the model to check; 0 in a decode step, whose ``Decoder`` did.
    """

    tokens: Tensor
    adapters: Tensor
    global_table: TokenTable
    window_table: TokenTable
    global_keys: PagedKeys
    window_keys: PagedKeys
    query_ends: list[int] | None = None
    last: Tensor | None = None
    window: Window | None = None
    longest: int = 0


def check_chunks(chunks: Sequence[Chunk], cache: PagedCache) -> None:
    """Refuse a step that would read or write outside its own share of the cache.

    Blocks may be shared, such as those of a common beginning, but only one chunk may write to a block.

    Raises:
        InputError: no chunks, a chunk without tokens, or a token outside the vocabulary.
        CacheError: a row or a block outside the cache, too few blocks, or two chunks in one place.
    """
    if not chunks:
        raise InputError("a step without chunks: give at least one")
    rows: set[int] = set()
    written: list[int] = []
    for index, chunk in enumerate(chunks):  # a decode step waits for this loop
        row, blocks, held, tokens = chunk.row, chunk.blocks, chunk.held, chunk.tokens
        count = len(tokens)
        if (
            not 0 <= row < cache.rows
            or held < 0
            or not count
            or held + count > len(blocks) * BLOCK_SIZE
            or min(tokens) < 0
            or max(tokens) >= cache.vocab_size
            or not cache.block_ids.issuperset(blocks)
        ):
            raise _misfit(f"chunk {index}", chunk, cache)
        rows.add(row)
        written += blocks[held // BLOCK_SIZE : (held + count - 1) // BLOCK_SIZE + 1]
    if len(rows) < len(chunks) or len(set(written)) < len(written):
        raise _collision(chunks)


def _misfit(name: str, chunk: Chunk, cache: PagedCache) -> CacheError | InputError:
    """What is wrong with a chunk that does not fit the cache."""
    if not 0 <= chunk.row < cache.rows:
        return CacheError(f"{name}: row={chunk.row}: the cache was made for rows 0 to {cache.rows - 1}")
    if chunk.held < 0:
        return CacheError(f"{name}: held={chunk.held}: give the count of tokens in the cache, 0 for a new sequence")
    if not len(chunk.tokens):
        return InputError(f"{name}: tokens is empty: give at least one, or leave the chunk out")
    for token in chunk.tokens:
        if not 0 <= token < cache.vocab_size:
            return InputError(f"{name}: token {token}: the vocabulary has ids 0 to {cache.vocab_size - 1}")
    for block in chunk.blocks:
        if not 0 <= block < cache.blocks:
            return CacheError(f"{name}: block {block}: the cache was made for blocks 0 to {cache.blocks - 1}")
    return CacheError(
        f"{name}: {chunk.length} tokens do not fit into {len(chunk.blocks)} blocks of {BLOCK_SIZE}: give it "
        f"{-(-chunk.length // BLOCK_SIZE)}"
    )


def _collision(chunks: Sequence[Chunk]) -> CacheError:
    """Which two chunks, or which chunk with itself, are in one place."""
    rows: dict[int, int] = {}
    writers: dict[int, int] = {}
    for index, chunk in enumerate(chunks):
        if chunk.row in rows:
            return CacheError(f"chunk {index}: row={chunk.row} is also chunk {rows[chunk.row]}'s: give each its own")
        rows[chunk.row] = index
        for block in chunk.blocks[chunk.held // BLOCK_SIZE : -(-chunk.length // BLOCK_SIZE)]:
            if block in writers:
                return CacheError(
                    f"chunk {index}: block {block} is also written by chunk {writers[block]}: give each its own copy"
                )
            writers[block] = index
    raise AssertionError("no two chunks are in one place")


def prefill_step(chunks: Sequence[Chunk], cache: PagedCache, device: torch.device) -> Step:
    """Whole prompts or the next pieces of them, of any length.

    Raises:
        CacheError, InputError: see ``check_chunks``.
    """
    check_chunks(chunks, cache)
    width = max(len(chunk.blocks) for chunk in chunks)
    table = _token_table(chunks, [global_slots(chunk) for chunk in chunks], device)
    ends = _cumulative([len(chunk.tokens) for chunk in chunks])
    window, window_slots = (None, []) if cache.window is None else _window(chunks, cache, device)
    blocks = [[*chunk.blocks, *[0] * (width - len(chunk.blocks))] for chunk in chunks]
    keys = PagedKeys(_int32(blocks, device), [chunk.length for chunk in chunks])
    return Step(
        tokens=_int64(_flat([list(chunk.tokens) for chunk in chunks]), device),
        adapters=_int32(_flat([[chunk.adapter] * len(chunk.tokens) for chunk in chunks]), device),
        global_table=table,
        window_table=replace(table, slots=_int32(window_slots, device)),
        global_keys=keys,
        window_keys=keys,
        query_ends=ends,
        last=_int64([end - 1 for end in ends], device),
        window=window,
        longest=max(chunk.length for chunk in chunks),
    )


def _token_table(chunks: Sequence[Chunk], slots: list[list[int]], device: torch.device) -> TokenTable:
    starts = [[index, *[-1] * (len(chunk.tokens) - 1)] for index, chunk in enumerate(chunks)]
    return TokenTable(
        positions=_int32(_flat([list(range(c.held, c.length)) for c in chunks]), device),
        slots=_int32(_flat(slots), device),
        starts=_int32(_flat(starts), device),
        cu_seqlens=_int32([0, *_cumulative([len(chunk.tokens) for chunk in chunks])], device),
        state_rows=_int32([chunk.row for chunk in chunks], device),
        continues=_int32([int(chunk.held > 0) for chunk in chunks], device),
    )


def global_slots(chunk: Chunk) -> list[int]:
    """Slot of each new token in a global layer's storage."""
    return [chunk.blocks[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for p in range(chunk.held, chunk.length)]


def _window(chunks: Sequence[Chunk], cache: PagedCache, device: torch.device) -> tuple[Window, list[int]]:
    """The buffer's plan and, for each new token, its row in it."""
    assert cache.window is not None
    read_from: list[int] = []
    read_to: list[int] = []
    write_from: list[int] = []
    write_to: list[int] = []
    slots: list[int] = []
    ends: list[int] = []
    at = 0
    for chunk in chunks:
        first = max(chunk.held - cache.window + 1, 0)  # the oldest key that the first new token sees
        place = at - first  # of the token at position p: place + p
        read_from += [cache.ring_slot(chunk.row, p) for p in range(first, chunk.held)]
        read_to += range(place + first, place + chunk.held)
        slots += range(place + chunk.held, place + chunk.length)
        kept = range(max(chunk.held, chunk.length - cache.window), chunk.length)
        write_from += [place + p for p in kept]
        write_to += [cache.ring_slot(chunk.row, p) for p in kept]
        at = place + chunk.length
        ends.append(at)
    read, write = (
        (_int64(read_from, device), _int64(read_to, device)),
        (_int64(write_from, device), _int64(write_to, device)),
    )
    return Window(at, *read, *write, ends), slots


def _cumulative(counts: Sequence[int]) -> list[int]:
    ends, total = [], 0
    for count in counts:
        total += count
        ends.append(total)
    return ends


def _flat(lists: Sequence[Sequence[int]]) -> list[int]:
    return [value for values in lists for value in values]


def _int32(values: Sequence[int] | Sequence[Sequence[int]], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.int32).to(device)


def _int64(values: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.int64).to(device)
