"""Greedy decode steps as one graph: captured once for a batch size, replayed for every token.

    decoder = Decoder(model, cache, batch=8, max_length=4096)       # with the graph that is fastest on the device
    tokens = decoder.step(chunks).tokens                            # up to 8 sequences, one token each

Every graph reads its input from the same buffers, filled by one copy a step; nothing inside waits for the host.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

import ascend_m1_ops
from ascend_m1_ops import PagedKeys, TokenTable, lengths_on_host

from .configuration_baichuan_m1 import LayerSpec
from .device import is_accelerator
from .errors import CacheError, InputError
from .graphs import ROUTES, Lengths, Logits, Replay, choose_graph
from .inference import InferenceModel
from .paged import BLOCK_SIZE, FILLERS, PagedCache
from .steps import Chunk, Step, check_chunks, global_slots

ROWS = 9  # of numbers that a decode step has for every sequence, see ``Buffers``


class Decoder:
    """Decode steps of up to ``batch`` sequences.

    Args:
        model: the weights.
        cache: the graph finds it where it is now, so it must stay.
        batch: sequences in the graph; a smaller step is filled up.
        max_length: of a sequence, in tokens; decides the width of the block table.
        graph: one of ``ROUTES``; None: the fastest that the device and its operators allow.
        cache_dir: folder in which ``npugraph_ex`` and ``cann`` keep what they compiled, for the next process; the
            vendor checks that its files belong to the user. None: every process compiles anew.

    Raises:
        InputError: the graph is unknown or not for this device, the batch is larger than the cache's room for fillers,
            or the model's RoPE tables are shorter than ``max_length``.
    """

    def __init__(
        self,
        model: InferenceModel,
        cache: PagedCache,
        batch: int,
        max_length: int,
        graph: str | None = None,
        cache_dir: str | None = None,
    ) -> None:
        self.graph = choose_graph(graph, model)
        if not 1 <= max_length <= model.max_length:
            raise InputError(f"max_length={max_length}: the model was made for 1 to {model.max_length} tokens")
        if not 1 <= batch <= FILLERS:
            raise InputError(f"batch={batch}: give 1 to {FILLERS} sequences")
        self.model, self.cache, self.batch, self.max_length = model, cache, batch, max_length
        self.cache_dir = cache_dir
        self.buffers = Buffers(batch, -(-max_length // BLOCK_SIZE), cache, model.embed.device)
        self._replay: Replay | None = None

    def lengths_on_host(self, spec: LayerSpec) -> bool:
        """Whether attention in such a layer takes the lengths as numbers on the host."""
        return lengths_on_host(self.model.embed.new_empty(0, spec.heads, spec.head_dim), spec.kv_heads)

    @torch.no_grad()
    def step(self, chunks: Sequence[Chunk]) -> Logits:
        """One token of each sequence. What a graph returns is overwritten by its next step.

        Raises:
            InputError: more chunks than ``batch``, not one token in each, or a sequence longer than ``max_length``.
            CacheError, InputError: see ``check_chunks``.
        """
        self._check(chunks)
        replay = self.warm_up()
        out = replay(*self.buffers.fill(chunks))
        return Logits(out.tokens[: len(chunks)], out.logits[: len(chunks)])

    @property
    def ready(self) -> bool:
        """Whether the graph is made."""
        return self._replay is not None

    @torch.no_grad()
    def warm_up(self) -> Replay:
        """Make the graph if it is not made, over spare rows, so that nothing of a sequence is done twice."""
        if self._replay is None:
            self._replay = ROUTES[self.graph](self, *self.buffers.fill([]))
        return self._replay

    def forward(self, lengths: Lengths, rings: Lengths) -> Logits:
        """What is captured: the step over the buffers. Lengths of None: attention reads them from there as well."""
        logits = self.model(self.buffers.step(lengths, rings), self.cache)
        return Logits(logits.argmax(-1), logits)

    def signature(self) -> str:
        """All that a compiled step depends on, but for the weights' values: this code, torch, geometry, sizes."""
        weights = [(name, tuple(weight.shape), weight.dtype) for name, weight in self.model.named_parameters()]
        caches = [(tuple(layer.k.shape), tuple(layer.state.shape), layer.k.dtype) for layer in self.cache.layers]
        versions = [f"{name} {version(name)}" for name in ("torch", "torch-npu")]
        return f"{_sources()}, {versions}, {self.batch}, {self.max_length}, {weights}, {caches}, {self.model.config}"

    def _check(self, chunks: Sequence[Chunk]) -> None:
        if len(chunks) > self.batch:
            raise InputError(f"{len(chunks)} sequences in a decode step made for {self.batch}: make it for more")
        for index, chunk in enumerate(chunks):
            if len(chunk.tokens) != 1:
                raise InputError(f"chunk {index}: {len(chunk.tokens)} tokens: a decode step takes one")
            if chunk.held >= self.max_length:
                raise InputError(
                    f"chunk {index}: held={chunk.held}: the decoder was made for max_length={self.max_length}, the new "
                    "token included: end the sequence, or make it for longer ones"
                )
            if len(chunk.blocks) > self.buffers.width:
                raise CacheError(
                    f"chunk {index}: {len(chunk.blocks)} blocks: the decoder was made for {self.buffers.width} "
                    f"(max_length={self.max_length}): leave the rest out"
                )
        check_chunks(chunks, self.cache)


def _sources() -> str:
    """Digest of this package and the operators."""
    folders = [Path(file).parent for file in (__file__, ascend_m1_ops.__file__ or "")]
    files = sorted(file for folder in folders for file in folder.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


class Buffers:
    """A decode step's input where a graph looks for it: one int32 tensor on the device, filled by one copy.

    Its rows are [batch] each: token, position, slot, ring slot, row, continues, length, ring length, adapter; then the
    block table [batch, width] and the rings' blocks [batch, ring_blocks]. Where a step has fewer chunks, the rest are
    fillers: the first token of a sequence, each in a spare row and slots of its own.
    """

    def __init__(self, batch: int, width: int, cache: PagedCache, device: torch.device) -> None:
        self.batch, self.width, self.ring_width, self.cache = batch, width, cache.ring_blocks, cache
        self.data = torch.zeros(batch * (ROWS + width + self.ring_width), dtype=torch.int32, device=device)
        self.borders = [ROWS * batch, (ROWS + width) * batch]
        rows = range(cache.rows, cache.rows + batch)
        slots = [cache.blocks * BLOCK_SIZE + i for i in range(batch)]
        ring_slots = [cache.ring_slot(row, 0) for row in rows]
        none, one = [0] * batch, [1] * batch
        self.fillers = np.array([none, none, slots, ring_slots, rows, none, one, one, none], dtype=np.int32)
        self.ring_tables = np.array([cache.ring_table(row) for row in range(cache.rows + 1)], dtype=np.int32)
        self.pinned = is_accelerator(device)  # a copy from pinned memory need not be waited for
        self.ends = torch.arange(batch + 1, dtype=torch.int32, device=device)
        for tensor in (self.data, self.ends):
            torch._dynamo.mark_static_address(tensor)

    def fill(self, chunks: Sequence[Chunk]) -> tuple[list[int], list[int]]:
        """Copy the numbers of up to ``batch`` chunks; returns the lengths in global and in window layers [batch]."""
        cache, window, count = self.cache, self.cache.window, len(chunks)
        lengths = [chunk.length for chunk in chunks]
        rings = [length if window is None else min(length, window) for length in lengths]
        rows = [chunk.row for chunk in chunks]
        numbers = [chunk.tokens[0] for chunk in chunks]
        numbers += [chunk.held for chunk in chunks]
        numbers += [global_slots(chunk)[0] for chunk in chunks]
        numbers += [cache.ring_slot(chunk.row, chunk.held) for chunk in chunks]
        numbers += rows
        numbers += [int(chunk.held > 0) for chunk in chunks]
        numbers += [*lengths, *rings]
        numbers += [chunk.adapter for chunk in chunks]
        host = torch.empty(self.data.shape, dtype=torch.int32, pin_memory=self.pinned)
        values, blocks, ring_blocks = np.split(host.numpy(), self.borders)
        values = values.reshape(ROWS, self.batch)
        values[:, :count] = np.array(numbers, dtype=np.int32).reshape(ROWS, count)  # a table of lists is slow to make
        values[:, count:] = self.fillers[:, count:]
        blocks[:] = cache.blocks
        for row, chunk in zip(blocks.reshape(self.batch, -1)[:count], chunks, strict=True):
            row[: len(chunk.blocks)] = chunk.blocks
        missing = self.batch - count
        ring_blocks[:] = self.ring_tables[rows + [cache.rows] * missing].flat  # the last table is the spare block's
        self.data.copy_(host, non_blocking=True)
        return lengths + [1] * missing, rings + [1] * missing

    def step(self, lengths: Lengths, rings: Lengths) -> Step:
        """The step as views of the buffers."""
        rows = self.data[: ROWS * self.batch].view(ROWS, self.batch)
        tokens, positions, slots, ring_slots, state_rows, continues = rows[:6]
        tables = self.data[ROWS * self.batch :].split([self.batch * self.width, self.batch * self.ring_width])
        table = TokenTable(positions, slots, self.ends[:-1], self.ends, state_rows, continues)
        ring = TokenTable(positions, ring_slots, self.ends[:-1], self.ends, state_rows, continues)
        return Step(
            tokens=tokens,
            global_table=table,
            window_table=ring,
            global_keys=PagedKeys(tables[0].view(self.batch, -1), lengths, rows[6]),
            window_keys=PagedKeys(tables[1].view(self.batch, -1), rings, rows[7]),
            adapters=rows[8],
        )
