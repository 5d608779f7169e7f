"""Prompts that begin alike: what is found of one is what it would have computed, whoever computed it in what steps."""

from __future__ import annotations

from functools import lru_cache
from random import Random

from hypothesis import example, given, settings
from hypothesis import strategies as st

from ascend_m1 import BaichuanM1Config, BaichuanM1ForCausalLM
from ascend_m1_serve.engine.core import Core
from ascend_m1_serve.protocol import Sampling

from ...model.golden import load_model
from .run import core_of, run_all

LONGEST = 900


@lru_cache
def model_of(window: int) -> BaichuanM1ForCausalLM:
    """The golden model's weights with another window, in float64: a difference is none of rounding."""
    source = load_model("hybrid")
    config = BaichuanM1Config(
        **{**source.config.to_dict(), "sliding_window": window, "max_position_embeddings": LONGEST}
    )
    model = BaichuanM1ForCausalLM(config).eval()
    model.load_state_dict(source.state_dict())
    return model.double()


def first(core: Core, ids: list[int]) -> tuple[int, float, int]:
    """The token after a prompt, its log-probability, and how much of the prompt was found."""
    request = core.add(ids, Sampling(1, ignore_eos=True, logprobs=0))
    [[event]] = run_all(core, [request])
    return event.tokens[0], event.logprobs[0][0].logprob, request.cached


# Lengths of prompts of one family: how many tokens each shares with one that came before it, and how many of its own.
prompts = st.lists(st.tuples(st.integers(0, 400), st.integers(1, 400)), min_size=2, max_size=5)


@settings(max_examples=10)
@example(window=200, chunk=512, blocks=28, lengths=[(0, 556), (256, 138), (384, 30)])
@example(window=200, chunk=512, blocks=8, lengths=[(0, 556), (256, 138), (0, 700), (256, 200), (384, 30)])
@given(st.integers(1, 600), st.sampled_from([100, 128, 300, 512]), st.sampled_from([8, 28]), prompts)
def test_what_is_found_is_what_is_computed(
    window: int, chunk: int, blocks: int, lengths: list[tuple[int, int]]
) -> None:
    """Also where a window is shorter than what a step computes, and where blocks are taken for something else."""
    model, choose = model_of(window), Random(0)
    found = core_of(model, LONGEST, chunk=chunk, max_sequences=2, blocks=blocks)
    computed = core_of(model, LONGEST, max_sequences=2, prefix_caching=False)
    before: list[int] = []
    for shared, own in lengths:
        before = before[:shared] + [choose.randrange(model.config.vocab_size) for _ in range(own)]
        token, probability, _ = first(found, before)
        expected, wanted, _ = first(computed, before)
        assert token == expected
        assert abs(probability - wanted) < 1e-9


def test_a_beginning_that_a_longer_step_computed_is_found_from_the_second_prompt_on() -> None:
    """The first prompt's step goes past its end, so that the second has to keep what its own end needs."""
    model, choose = model_of(200), Random(1)
    core = core_of(model, LONGEST, max_sequences=2)
    shared = [choose.randrange(model.config.vocab_size) for _ in range(256)]
    cached = []
    for own in (300, 20, 30, 40):
        cached.append(first(core, shared + [choose.randrange(model.config.vocab_size) for _ in range(own)])[2])
    assert cached == [0, 0, 256, 256]
