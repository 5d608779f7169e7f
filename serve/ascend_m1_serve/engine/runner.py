"""Carries out the scheduler's plan on the model: copies, one decode forward, one prefill forward."""

from __future__ import annotations

import torch
from torch import Tensor

from ascend_m1.buckets import BucketedDecoder
from ascend_m1.inference import InferenceModel
from ascend_m1.paged import BLOCK_SIZE, PagedCache
from ascend_m1.steps import Chunk, prefill_step

from ..protocol import Logprob
from .block_pool import BlockPool
from .request import Request, blocks_for
from .sampler import choose, is_plain
from .scheduler import Plan
from .store import PrefixStore, swap_in, swap_out

Chosen = tuple[Request, int | None, tuple[Logprob, ...]]


class Runner:
    """The model, its cache, and the copies of it.

    Args:
        model: in the layout for serving.
        cache: of as many rows as there may be sequences.
        pool: the cache's blocks; full ones are published to it.
        max_length: tokens of the longest sequence.
        graph: how decode steps run, see ``ascend_m1.graphs``.
        prefix_caching: whether full blocks are kept for others.
    """

    def __init__(
        self,
        model: InferenceModel,
        cache: PagedCache,
        pool: BlockPool,
        max_length: int,
        graph: str | None,
        prefix_caching: bool,
    ) -> None:
        self.model, self.cache, self.pool = model, cache, pool
        self.windows = [spec.window is not None for spec in model.config.layer_specs]
        self.decoder = BucketedDecoder(model, cache, cache.rows, max_length, graph)
        self.store = PrefixStore(cache, self.windows) if prefix_caching else None

    @torch.no_grad()
    def run(self, plan: Plan) -> list[Chosen]:
        """One step; the tokens that came out of it."""
        for request, row, blocks in plan.swap_out:
            request.swapped = swap_out(self.cache, self.windows, row, blocks)
        for request in plan.swap_in:
            assert request.row is not None
            swap_in(self.cache, self.windows, request.row, request.blocks, request.swapped)
            request.swapped = None
        for request in plan.admitted:
            if request.held and self.store is not None:
                assert request.row is not None
                self.store.restore(request.row, request.blocks[: request.held // BLOCK_SIZE])
        return [*self._decode(plan.decode), *self._prefill(plan.prefill)]

    def _decode(self, requests: list[Request]) -> list[Chosen]:
        if not requests:
            return []
        out = self.decoder.step([_chunk(request, 1) for request in requests])
        for request in requests:
            self._advance(request, 1)
        if all(is_plain(request.sampling) for request in requests):
            return [(request, token, ()) for request, token in zip(requests, out.tokens.tolist(), strict=True)]
        return self._choose(requests, out.logits)

    def _prefill(self, chunks: list[tuple[Request, int]]) -> list[Chosen]:
        if not chunks:
            return []
        step = prefill_step([_chunk(*chunk) for chunk in chunks], self.cache, self.model.embed.device)
        logits = self.model(step, self.cache)
        for request, count in chunks:
            self._advance(request, count)
        done = [index for index, (request, _) in enumerate(chunks) if not request.missing]
        return self._choose([chunks[index][0] for index in done], logits[done]) if done else []

    def _choose(self, requests: list[Request], logits: Tensor) -> list[Chosen]:
        rows = logits.to("cpu", torch.float32, copy=True)
        return [(request, *choose(request, row)) for request, row in zip(requests, rows, strict=True)]

    def _advance(self, request: Request, count: int) -> None:
        """The next ``count`` tokens are in the cache; publish the blocks that became full."""
        first, request.held = request.held // BLOCK_SIZE, request.held + count
        full = request.held // BLOCK_SIZE
        if self.store is None or full == first:
            return
        for index in range(first, full):
            self.pool.publish(request.blocks[index], request.key(index))
        self._keep(self.store, request, full)

    def _keep(self, store: PrefixStore, request: Request, full: int) -> None:
        """What goes on from here needs beside these blocks, as far as it was not kept before.

        A step that fills a block ends with one (``Scheduler._prefill``), so that the rings and the state are those of
        its end. They are kept with whichever blocks have these names: only such blocks are found.
        """
        assert request.row is not None
        chain = [self.pool.published(request.key(index)) for index in range(full)]
        for index, (block, tokens) in enumerate(zip(chain, self.pool.needed(full), strict=True)):
            if block is not None and self.pool.kept(block) < tokens:
                store.save_block(request.row, block, index, request.held)
                self.pool.keep(block, tokens)
        last = chain[-1]
        if last is not None and not self.pool.has_state(last):
            store.save_state(request.row, last)
            self.pool.keep_state(last)


def _chunk(request: Request, count: int) -> Chunk:
    assert request.row is not None
    tokens = request.ids[request.held : request.held + count]
    blocks = request.blocks[: blocks_for(request.held + count)]
    return Chunk(request.row, blocks, request.held, tokens, request.slot)
