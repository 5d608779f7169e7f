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
from .device import default_graph, is_accelerator
from .errors import InputError
from .graphs import ROUTES, Lengths, Logits, Replay
from .inference import InferenceModel
from .paged import BLOCK_SIZE, FILLERS, PagedCache
from .steps import Chunk, Step, fillers, global_slots


class Decoder:
    """Decode steps of up to ``batch`` sequences.

    Args:
        model: the weights.
        cache: the graph finds it where it is now, so it must stay.
        batch: sequences in the graph; a smaller step is filled up.
        max_length: of a sequence, in tokens; decides the width of the block table.
        graph: one of ``ROUTES``; None: the default of the device.
        cache_dir: folder in which ``npugraph_ex`` and ``cann`` keep what they compiled, for the next process; the
            vendor checks that its files belong to the user. None: every process compiles anew.

    Raises:
        InputError: the graph is unknown, or the batch is larger than the cache's room for fillers.
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
        self.graph = default_graph(model.embed.device) if graph is None else graph
        if self.graph not in ROUTES:
            raise InputError(f"graph {self.graph!r} is not known: use one of {', '.join(ROUTES)}")
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
        """
        self._check(chunks)
        if self._replay is None:  # captured over spare rows, so that nothing of a sequence is done twice
            self._replay = ROUTES[self.graph](self, *self.buffers.fill(fillers(self.batch, self.cache), self.cache))
        filled = [*chunks, *fillers(self.batch - len(chunks), self.cache)]
        out = self._replay(*self.buffers.fill(filled, self.cache))
        return Logits(out.tokens[: len(chunks)], out.logits[: len(chunks)])

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
        for chunk in chunks:
            if len(chunk.tokens) != 1 or chunk.length > self.max_length:
                raise InputError(
                    f"a decode step takes one token and up to {self.max_length} in all, not {len(chunk.tokens)} and "
                    f"{chunk.length}"
                )


def _sources() -> str:
    """Digest of this package and the operators."""
    folders = [Path(file).parent for file in (__file__, ascend_m1_ops.__file__ or "")]
    files = sorted(file for folder in folders for file in folder.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


class Buffers:
    """A decode step's input where a graph looks for it: one int32 tensor on the device, filled by one copy.

    Its rows are [batch] each: token, position, slot, ring slot, row, continues, length, ring length; then the block
    table [batch, width] and the rings' blocks [batch, ring_blocks].
    """

    def __init__(self, batch: int, width: int, cache: PagedCache, device: torch.device) -> None:
        self.batch, self.width, self.ring_width = batch, width, cache.ring_blocks
        self.data = torch.zeros(batch * (8 + width + self.ring_width), dtype=torch.int32, device=device)
        self.borders = [8 * batch, (8 + width) * batch]
        rows = range(cache.rows + FILLERS)
        self.ring_tables = np.array([cache.ring_table(row) for row in rows], dtype=np.int32)
        self.pinned = is_accelerator(device)  # a copy from pinned memory need not be waited for
        self.ends = torch.arange(batch + 1, dtype=torch.int32, device=device)
        for tensor in (self.data, self.ends):
            torch._dynamo.mark_static_address(tensor)

    def fill(self, chunks: Sequence[Chunk], cache: PagedCache) -> tuple[list[int], list[int]]:
        """Copy the numbers of ``batch`` chunks; returns their lengths in global and in window layers."""
        window = cache.window
        lengths = [chunk.length for chunk in chunks]
        rings = [length if window is None else min(length, window) for length in lengths]
        numbers = [chunk.tokens[0] for chunk in chunks]
        numbers += [chunk.held for chunk in chunks]
        numbers += [global_slots(chunk)[0] for chunk in chunks]
        numbers += [cache.ring_slot(chunk.row, chunk.held) for chunk in chunks]
        numbers += [chunk.row for chunk in chunks]
        numbers += [int(chunk.held > 0) for chunk in chunks]
        numbers += [*lengths, *rings]
        host = torch.empty(self.data.shape, dtype=torch.int32, pin_memory=self.pinned)
        values, blocks, ring_blocks = np.split(host.numpy(), self.borders)  # a table of lists is slow to make
        values[:] = numbers
        blocks[:] = cache.blocks
        for row, chunk in zip(blocks.reshape(self.batch, -1), chunks, strict=True):
            row[: len(chunk.blocks)] = chunk.blocks
        ring_blocks[:] = self.ring_tables[[chunk.row for chunk in chunks]].flat
        self.data.copy_(host, non_blocking=True)
        return lengths, rings

    def step(self, lengths: Lengths, rings: Lengths) -> Step:
        """The step as views of the buffers."""
        rows = self.data[: 8 * self.batch].view(8, self.batch)
        tokens, positions, slots, ring_slots, state_rows, continues = rows[:6]
        tables = self.data[8 * self.batch :].split([self.batch * self.width, self.batch * self.ring_width])
        table = TokenTable(positions, slots, self.ends[:-1], self.ends, state_rows, continues)
        ring = TokenTable(positions, ring_slots, self.ends[:-1], self.ends, state_rows, continues)
        return Step(
            tokens=tokens,
            global_table=table,
            window_table=ring,
            global_keys=PagedKeys(tables[0].view(self.batch, -1), lengths, rows[6]),
            window_keys=PagedKeys(tables[1].view(self.batch, -1), rings, rows[7]),
        )
