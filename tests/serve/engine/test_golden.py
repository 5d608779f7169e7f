"""Every golden case through the built-in engine: alone, together, in chunks, with prefix hits and swapped out."""

from __future__ import annotations

import pytest

from ...model.golden import CASES, load_model, load_prompts
from .run import core_of, greedy

pytestmark = pytest.mark.parametrize("case", CASES)
STEPS = 24


def expected(case: str) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts, and the tokens after each."""
    prompts = load_prompts(case)
    return [ids.tolist() for ids, _, _ in prompts], [tokens.tolist() for _, _, tokens in prompts]


def test_one_by_one(case: str) -> None:
    core = core_of(load_model(case))
    for ids, wanted in zip(*expected(case), strict=True):
        assert greedy(core, [ids], STEPS) == [wanted]


@pytest.mark.parametrize("chunk", [1, 8, 150, 512])
def test_together_in_chunks(case: str, chunk: int) -> None:
    prompts, wanted = expected(case)
    assert greedy(core_of(load_model(case), chunk=chunk), prompts, STEPS) == wanted


def test_two_at_a_time(case: str) -> None:
    prompts, wanted = expected(case)
    assert greedy(core_of(load_model(case), max_sequences=2), prompts, STEPS) == wanted


@pytest.mark.parametrize("graph", ["eager", "inductor"])
def test_graphs(case: str, graph: str) -> None:
    if graph == "inductor" and case != "hybrid":
        return  # minutes of compiling would show nothing new
    prompts, wanted = expected(case)
    assert greedy(core_of(load_model(case), graph=graph, max_sequences=2), prompts[-2:], STEPS) == wanted[-2:]


def test_a_prompt_that_was_there_is_not_computed_again(case: str) -> None:
    prompts, wanted = expected(case)
    core = core_of(load_model(case))
    assert greedy(core, prompts, STEPS) == wanted
    before = core.stats().cached_tokens
    assert greedy(core, prompts, STEPS) == wanted
    assert core.stats().cached_tokens - before == sum((len(ids) - 1) // 128 * 128 for ids in prompts)


def test_swapped_out_and_back(case: str) -> None:
    """Blocks for two sequences of 300 tokens, asked of four."""
    text = [token for ids, _, _ in load_prompts(case) for token in ids.tolist()] * 40
    prompts = [text[i:][:120] for i in range(4)]
    alone = core_of(load_model(case), prefix_caching=False)
    wanted = [greedy(alone, [prompt], 180)[0] for prompt in prompts]
    core = core_of(load_model(case), max_length=384, blocks=6, max_sequences=4, prefix_caching=False)
    assert greedy(core, prompts, 180) == wanted
    assert core.stats().preemptions > 0
    assert core.stats().free_blocks == 6
