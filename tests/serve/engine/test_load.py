"""Two hundred requests of every kind at once: each has the answer that it has alone.

In float64: the rounding of a batch's products depends on its size, and in float32 one of these thousands of choices
falls on the other side of a sampled number for that alone.
"""

from __future__ import annotations

import asyncio
import copy
import random
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ascend_m1 import BaichuanM1ForCausalLM
from ascend_m1.inference import InferenceModel
from ascend_m1_serve.engine.core import Core, EngineOptions, make_core
from ascend_m1_serve.engine.service import BuiltInEngine
from ascend_m1_serve.protocol import Sampling

from ...model.golden import load_model
from ...model.test_adapters import CASE, save_adapter

COUNT, LONGEST = 200, 384


@dataclass(frozen=True)
class Asked:
    """A request; ``cancel``: tokens after which the client goes away."""

    ids: list[int]
    sampling: Sampling
    adapter: str | None = None
    cancel: int | None = None


def requests(vocab_size: int) -> list[Asked]:
    """Greedy and sampled, with and without penalties, some on an adapter, a quarter begins alike, a tenth goes away."""
    choose = random.Random(0)
    shared = [choose.randrange(vocab_size) for _ in range(140)]
    found = []
    for index in range(COUNT):
        length = choose.randint(100, 127) if index % 3 == 0 else choose.randint(1, 60)  # soon in need of a second block
        ids = [choose.randrange(vocab_size) for _ in range(length)]
        if index % 4 == 0:
            ids = shared + ids
        sampled = {"temperature": 0.9, "top_k": 20, "top_p": 0.95, "seed": index} if index % 3 else {}
        penalties = {"repetition_penalty": 1.1, "presence_penalty": 0.5} if index % 5 == 0 else {}
        length = choose.randint(1, 24)
        sampling = Sampling(max_tokens=length, ignore_eos=True, **sampled, **penalties)  # type: ignore[arg-type]
        adapter = (None, "a", None, "b")[choose.randrange(4)]
        found.append(Asked(ids, sampling, adapter, choose.randint(1, length) if index % 10 == 9 else None))
    return found


async def answered(engine: BuiltInEngine, asked: Asked) -> list[int]:
    stream = engine.submit(asked.ids, asked.sampling, adapter=asked.adapter)
    tokens: list[int] = []
    async for event in stream:
        tokens += event.tokens
        if asked.cancel is not None and len(tokens) >= asked.cancel:
            stream.abort()
    return tokens


@lru_cache
def exact_model() -> BaichuanM1ForCausalLM:
    return copy.deepcopy(load_model(CASE)).double()


def make(blocks: int, sequences: int) -> Core:
    options = EngineOptions(
        LONGEST, max_sequences=sequences, blocks=blocks, chunk=48, adapters=2, prefix_caching=sequences > 1
    )
    return make_core(InferenceModel(exact_model(), LONGEST), options)


async def all_answers(folder: Path, asked: list[Asked], blocks: int, sequences: int) -> list[list[int]]:
    engine = BuiltInEngine(make(blocks, sequences), tokenizer=None)
    try:
        for name in ("a", "b"):
            await engine.add_adapter(name, str(folder / name))
        if sequences == 1:
            return [await answered(engine, one) for one in asked]
        tokens = await asyncio.gather(*(answered(engine, one) for one in asked))
        stats = engine.stats()
        assert stats.preemptions > 0
        assert stats.cached_tokens > 0
        assert (stats.running, stats.waiting, stats.free_blocks) == (0, 0, blocks)
        return tokens
    finally:
        await engine.stop()


def test_answers_under_load_are_the_answers_alone(tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "b")):
        save_adapter(tmp_path / name, seed)
    asked = requests(exact_model().config.vocab_size)
    alone = asyncio.run(all_answers(tmp_path, asked, blocks=3, sequences=1))
    together = asyncio.run(all_answers(tmp_path, asked, blocks=6, sequences=8))
    assert together == alone
    assert [len(tokens) for tokens in alone] == [one.cancel or one.sampling.max_tokens for one in asked]
