"""Blocks and turns, without a model."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from ascend_m1.paged import BLOCK_SIZE
from ascend_m1_serve.engine.block_pool import BlockPool
from ascend_m1_serve.engine.request import Request, blocks_for
from ascend_m1_serve.engine.scheduler import Plan, Scheduler
from ascend_m1_serve.protocol import Sampling

from ...model.golden import load_model
from .run import core_of


def request(number: int, prompt: int, priority: int = 5) -> Request:
    ids = [number % 3] * prompt  # some begin alike
    return Request(number, ids, prompt, Sampling(max_tokens=1), priority, arrived=0.0, random=Random(0))


@st.composite
def loads(draw: st.DrawFn) -> list[tuple[int, int, int]]:
    """(prompt, answer, priority) of requests of at most 640 tokens."""
    one = st.tuples(st.integers(1, 400), st.integers(1, 240), st.integers(1, 5))
    return draw(st.lists(one, min_size=1, max_size=8))


@given(loads(), st.integers(5, 12), st.integers(1, 4), st.integers(1, 600), st.booleans())
def test_every_request_comes_to_its_end(
    load: list[tuple[int, int, int]], blocks: int, rows: int, chunk: int, prefix_caching: bool
) -> None:
    """Nobody writes to a block of another, no row is taken twice, everything is given back."""
    pool = BlockPool(blocks)
    scheduler = Scheduler(pool, rows, chunk, prefix_caching)
    wanted = {}
    for number, (prompt, answer, priority) in enumerate(load):
        scheduler.add(new := request(number, prompt, priority))
        wanted[new] = prompt + answer
    steps = 0
    while scheduler.busy:
        plan = scheduler.plan()
        steps += 1
        assert plan.decode or plan.prefill or plan.swap_out, "a step in which nothing happens"
        assert sum(count for _, count in plan.prefill) <= chunk
        check_places(scheduler, plan)
        for one, count in [*plan.prefill, *((one, 1) for one in plan.decode)]:
            first = one.held // BLOCK_SIZE
            one.held += count
            for index in range(first, one.held // BLOCK_SIZE) if prefix_caching else ():
                pool.publish(one.blocks[index], one.key(index))
                if one.held == (index + 1) * BLOCK_SIZE:
                    pool.keep_state(one.blocks[index])
            if not one.missing:
                one.ids.append(one.number % 3)
                if len(one.ids) == wanted[one]:
                    scheduler.remove(one)
    assert pool.free == blocks
    assert len(scheduler.rows) == rows
    assert steps < 10000


def check_places(scheduler: Scheduler, plan: Plan) -> None:
    """Rows are different, and so are the blocks that are written to."""
    running = scheduler.running
    rows = [one.row for one in running]
    assert len(set(rows)) == len(rows)
    assert not set(rows) & set(scheduler.rows)
    written: list[int] = []
    for one, count in [*plan.prefill, *((one, 1) for one in plan.decode)]:
        assert len(one.blocks) >= blocks_for(one.held + count)
        written += one.blocks[one.held // BLOCK_SIZE : blocks_for(one.held + count)]
    assert len(set(written)) == len(written)
    held = {block for one in running for block in one.blocks[: one.held // BLOCK_SIZE]}
    assert not held & set(written), "a full block is written to"


def test_priority_then_arrival() -> None:
    core = core_of(load_model("published-ratio"), max_sequences=1)
    sampling = Sampling(max_tokens=3, ignore_eos=True)
    requests = [core.add([1, 2, 3], sampling, priority=priority) for priority in (5, 1, 3, 1)]
    ends = []
    while core.scheduler.busy:
        ends += [request.number for request, event in core.step() if event.finish]
    assert ends == [requests[i].number for i in (1, 3, 2, 0)]


def test_who_is_served_last_is_swapped_out_first() -> None:
    scheduler = Scheduler(BlockPool(3), rows=3, chunk=512, prefix_caching=False)
    requests = [request(number, BLOCK_SIZE, priority) for number, priority in enumerate((1, 5, 3))]
    for one in requests:
        scheduler.add(one)
    for one, count in scheduler.plan().prefill:
        one.held += count
        one.ids.append(0)
    plan = scheduler.plan()  # each wants a second block
    assert [one for one, _, _ in plan.swap_out] == [requests[1], requests[2]]
    assert plan.decode == [requests[0]]


def test_the_least_recently_used_contents_are_forgotten_first() -> None:
    pool = BlockPool(3)
    for name in (b"a", b"b"):
        [block] = pool.take(1)
        pool.publish(block, name)
        pool.keep_state(block)
        pool.release([block])
    assert pool.free == 3
    pool.take(2)  # the one that never held anything, then a's
    assert pool.find([b"a"]) == []
    assert len(pool.find([b"b"])) == 1


def test_a_chain_is_continued_only_where_the_rest_was_kept() -> None:
    """A window of 200 tokens sees the last 72 of the block before the last."""
    pool = BlockPool(4, window=200)
    blocks = pool.take(3)
    for block, name in zip(blocks, (b"a", b"b", b"c"), strict=True):
        pool.publish(block, name)
        pool.keep(block, BLOCK_SIZE)
    assert pool.find([b"a", b"b", b"c"]) == []
    pool.keep_state(blocks[0])
    assert pool.find([b"a", b"b", b"c"]) == blocks[:1]
    pool.keep_state(blocks[2])
    assert pool.find([b"a", b"b", b"c"]) == blocks
    for tokens, found in ((72, blocks), (71, blocks[:1])):
        pool.keep(blocks[1], tokens)
        assert pool.find([b"a", b"b", b"c"]) == found
    assert pool.find([b"b"]) == []
