"""What runs in the next step: counts and blocks only, no tensors.

Every step has one decode forward for all sequences that are being generated, and at most one prefill forward of
``chunk`` tokens for the prompts that come in, so that a long prompt never holds up the others for longer than a chunk.
When blocks run out, the sequence that would be served last is swapped out, and comes back as it was.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field

from ascend_m1.paged import BLOCK_SIZE

from .block_pool import BlockPool
from .request import Request, blocks_for


@dataclass(frozen=True)
class Plan:
    """One step, to be carried out in this order.

    Attributes:
        swap_out: with the row and the blocks that each leaves; others may have them in the same plan.
        swap_in: their row and blocks are new.
        admitted: those that begin, the first ``cached`` tokens being in their blocks.
        prefill: chunks of prompts, as counts of tokens.
        decode: one token each.
    """

    swap_out: list[tuple[Request, int, list[int]]] = field(default_factory=list)
    swap_in: list[Request] = field(default_factory=list)
    admitted: list[Request] = field(default_factory=list)
    prefill: list[tuple[Request, int]] = field(default_factory=list)
    decode: list[Request] = field(default_factory=list)


class Scheduler:
    """Requests that wait, run and are swapped out.

    Args:
        pool: the cache's blocks.
        rows: sequences in the cache at the same time.
        chunk: tokens in a prefill forward.
        prefix_caching: whether prompts are looked up in the pool.
    """

    def __init__(self, pool: BlockPool, rows: int, chunk: int, prefix_caching: bool) -> None:
        self.pool, self.chunk, self.prefix_caching = pool, chunk, prefix_caching
        self.rows = list(reversed(range(rows)))
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.swapped: list[Request] = []
        self.preemptions = 0

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.waiting or self.running or self.swapped)

    def add(self, request: Request) -> None:
        """Let it wait for its turn."""
        insort(self.waiting, request, key=lambda r: r.order)

    def remove(self, request: Request) -> None:
        """It is finished, or ended from outside."""
        for requests in (self.waiting, self.running, self.swapped):
            if request in requests:
                requests.remove(request)
        if request.row is not None:
            self._leave(request)

    def plan(self) -> Plan:
        """The next step; blocks and rows are given out."""
        plan = Plan()
        for request in [r for r in self.running if r.decoding]:
            if request.row is not None and self._grow(request, plan):  # it may have been swapped out for another
                plan.decode.append(request)
        plan.decode[:] = [r for r in plan.decode if r.row is not None]
        if not plan.swap_out:
            self._swap_in(plan)
            plan.decode.extend(r for r in plan.swap_in if r.decoding)
        budget = self.chunk
        for request in self.running:
            if not request.decoding:
                budget -= self._prefill(request, budget, plan)
        while self.waiting and not self.swapped and not plan.swap_out and budget > 0 and self._admit(plan):
            budget -= self._prefill(self.running[-1], budget, plan)
        self.running.sort(key=lambda r: r.order)
        return plan

    def _grow(self, request: Request, plan: Plan) -> bool:
        """Make room for one token more; False: the request itself had to leave."""
        while request.held == len(request.blocks) * BLOCK_SIZE:
            if self.pool.free:
                request.blocks += self.pool.take(1)
                continue
            victim = max(self.running, key=lambda r: r.order)
            assert victim.row is not None
            plan.swap_out.append((victim, victim.row, victim.blocks))
            self.preemptions += 1
            self.running.remove(victim)
            insort(self.swapped, victim, key=lambda r: r.order)
            self._leave(victim)
            if victim is request:
                return False
        return True

    def _swap_in(self, plan: Plan) -> None:
        while self.swapped and self.rows:
            request = self.swapped[0]
            needed = blocks_for(max(request.held + 1, request.prompt))
            if needed > self.pool.free:
                return
            self.swapped.pop(0)
            request.row, request.blocks = self.rows.pop(), self.pool.take(needed)
            self.running.append(request)
            plan.swap_in.append(request)

    def _admit(self, plan: Plan) -> bool:
        """Give the first that waits a row and the blocks of its whole prompt; False: it must wait on."""
        request = self.waiting[0]
        found: list[int] = []
        if self.prefix_caching:  # at least one token is computed: its logits are needed
            found = self.pool.find([request.key(i) for i in range((request.prompt - 1) // BLOCK_SIZE)])
        needed = blocks_for(request.prompt) - len(found)
        if not self.rows or needed > self.pool.free - self.pool.unused(found):
            return False
        self.waiting.pop(0)
        self.pool.share(found)
        request.row, request.blocks = self.rows.pop(), found + self.pool.take(needed)
        request.held = request.cached = len(found) * BLOCK_SIZE
        self.running.append(request)
        plan.admitted.append(request)
        return True

    def _prefill(self, request: Request, budget: int, plan: Plan) -> int:
        """Plan the request's next chunk; returns its tokens.

        A chunk ends at a block's border where it can, for only there is the state of a sequence saved for others; never
        with the prompt's last token, so that the same prompt finds everything but its last block.
        """
        count = min(request.missing, budget)
        border = min(request.held + count, request.prompt - 1) // BLOCK_SIZE * BLOCK_SIZE
        if self.prefix_caching and border > request.held:
            count = min(count, border - request.held)
        if count > 0:
            plan.prefill.append((request, count))
        return max(count, 0)

    def _leave(self, request: Request) -> None:
        assert request.row is not None
        self.pool.release(request.blocks)
        self.rows.append(request.row)
        request.row, request.blocks = None, []
