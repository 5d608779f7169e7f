"""Choices against transformers' own processors, and what a seed promises."""

from __future__ import annotations

from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ascend_m1_serve.engine import sampler
from ascend_m1_serve.engine.request import Request
from ascend_m1_serve.engine.sampler import adjust, choose, draw
from ascend_m1_serve.protocol import Sampling

from ...model.golden import load_model, load_prompts
from .run import core_of, run_all, tokens

CASE = "published-ratio"


def request(sampling: Sampling, prompt: list[int], answer: list[int]) -> Request:
    made = Request(1, prompt + answer, len(prompt), sampling, 5, arrived=0.0, random=Random(sampling.seed))
    made.counts.update(answer)
    return made


def logits_of(vocab: int, spread: float, seed: int) -> Tensor:
    return torch.randn(vocab, generator=torch.Generator().manual_seed(seed)) * spread


@given(
    st.integers(1, 300),
    st.floats(0.1, 8),
    st.integers(0, 2**16),
    st.floats(0.1, 3),
    st.one_of(st.just(0), st.integers(1, 400)),
    st.one_of(st.just(1.0), st.floats(0.01, 0.999)),
    st.one_of(st.just(0.0), st.floats(0.001, 1)),
    st.integers(1, 40),
)
def test_the_same_candidates_and_probabilities_as_transformers(
    vocab: int, spread: float, seed: int, temperature: float, top_k: int, top_p: float, min_p: float, first: int
) -> None:
    """Also when the candidates looked at first are not enough."""
    logits = logits_of(vocab, spread, seed)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    if min_p:
        warpers.append(MinPLogitsWarper(min_p))
    expected = warpers(torch.zeros(1, 1, dtype=torch.int64), logits.double()[None])[0].softmax(-1)
    sampling = Sampling(max_tokens=1, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    probabilities, order = expected.sort(descending=True, stable=True)
    ends = probabilities.cumsum(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "_CANDIDATES", first)
        for end, probability, token in zip(ends.tolist(), probabilities.tolist(), order.tolist(), strict=True):
            if probability > 1e-9:  # the middle of the token's share
                assert draw(logits, sampling, end - probability / 2) == token
        assert expected[draw(logits, sampling, 1 - 2**-53)] > 0


@given(st.integers(0, 2**16), st.lists(st.integers(0, 30), min_size=1), st.floats(0.5, 2))
def test_repetition_penalty_is_transformers(seed: int, ids: list[int], penalty: float) -> None:
    logits = logits_of(31, 3, seed)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([ids]), logits[None].clone())[0]
    adjust(request(Sampling(max_tokens=1, repetition_penalty=penalty), ids[:1], ids[1:]), logits)
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e308])
@pytest.mark.parametrize("penalty", [5e-324, 1e-40, 1.0, 1e40, 1e308])
def test_numbers_without_measure_choose_a_token(temperature: float, penalty: float) -> None:
    """One request's numbers must not stop the engine for all; what a grammar forbids stays forbidden."""
    logits = logits_of(31, 3, 0)
    logits[4], logits[5] = 0, -torch.inf
    expected = logits.clone()
    sampling = Sampling(1, temperature=temperature, repetition_penalty=penalty, top_k=3, top_p=0.5, min_p=0.1, seed=1)
    seen = [1, 4, 5]
    token, _ = choose(request(sampling, seen, []), logits)
    assert not logits.isnan().any()
    assert logits[5] == -torch.inf
    assert (logits.isinf() == expected.isinf()).all()
    assert token != 5
    assert temperature > 1 or token == int(logits.argmax())


def test_presence_and_frequency_count_the_answer_only() -> None:
    logits = torch.zeros(6)
    sampling = Sampling(max_tokens=1, presence_penalty=0.5, frequency_penalty=0.25, logit_bias={5: 2.0})
    adjust(request(sampling, [0, 1, 1], [1, 2, 2, 2]), logits)
    assert logits.tolist() == [0, -0.75, -1.25, 0, 0, 2.0]


def test_logprobs_are_of_the_logits_as_they_came() -> None:
    logits = logits_of(20, 2, 0)
    expected = torch.log_softmax(logits, -1)
    sampling = Sampling(max_tokens=1, logit_bias={7: 100.0}, logprobs=3)
    token, (chosen, *likeliest) = choose(request(sampling, [1], []), logits.clone())
    assert token == chosen.token == 7
    assert chosen.logprob == pytest.approx(float(expected[7]))
    assert chosen.rank == int((expected > expected[7]).sum()) + 1
    values, ids = expected.topk(3)
    assert [(one.token, one.rank) for one in likeliest] == list(zip(ids.tolist(), (1, 2, 3), strict=True))
    assert [one.logprob for one in likeliest] == pytest.approx(values.tolist())


def test_a_seed_gives_the_same_answer_in_any_company() -> None:
    """Alone; with others; with few rows, small chunks and few blocks, so that sequences are swapped out."""
    text = [token for ids, _, _ in load_prompts(CASE) for token in ids.tolist()] * 8
    loads = [(text[i:][: 100 + 7 * i], Sampling(200, temperature=0.8, top_p=0.95, seed=i)) for i in range(6)]
    alone = []
    for ids, sampling in loads:
        core = core_of(load_model(CASE))
        alone.append(tokens(run_all(core, [core.add(ids, sampling)])[0]))
    assert len(set(map(tuple, alone))) == len(alone)
    for options in ({}, {"max_sequences": 4, "chunk": 40, "blocks": 6, "max_length": 400}):
        core = core_of(load_model(CASE), **options)
        together = run_all(core, [core.add(*load) for load in loads])
        assert [tokens(events) for events in together] == alone
    assert core.stats().preemptions > 0


def test_without_a_seed_answers_differ() -> None:
    core = core_of(load_model(CASE))
    sampling = Sampling(40, temperature=1.5, ignore_eos=True)
    first, second = run_all(core, [core.add([1, 2, 3], sampling) for _ in range(2)])
    assert tokens(first) != tokens(second)


def test_stop_tokens_and_the_end() -> None:
    core = core_of(load_model(CASE))
    ids, _, greedy = load_prompts(CASE)[1]
    free = Sampling(24, ignore_eos=True)
    stopping = Sampling(24, ignore_eos=True, stop_token_ids=frozenset({int(greedy[3])}))
    whole, stopped = run_all(core, [core.add(ids.tolist(), sampling) for sampling in (free, stopping)])
    assert tokens(whole) == greedy.tolist()
    first = greedy.tolist().index(int(greedy[3]))
    assert tokens(stopped) == greedy.tolist()[: first + 1]
    assert (whole[-1].finish, stopped[-1].finish) == ("length", "stop")
    long = core_of(load_model(CASE), max_length=len(ids) + 4)
    [events] = run_all(long, [long.add(ids.tolist(), free)])
    assert tokens(events) == greedy.tolist()[:4], "the end of max_length"
