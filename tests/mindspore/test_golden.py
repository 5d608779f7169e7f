"""Every golden case through compiled graphs: prompts at once and in chunks, by steps, in rings, in ragged batches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from mindspore import Tensor, int32, mint

from ascend_m1.errors import InputError
from ascend_m1.mindspore.model import Decode, compiled, graphs
from ascend_m1.mindspore.runner import decode, prefill

from .golden import CASES, TOLERANCE, Prompt, compilations, greedy, load_core, load_graphs, load_prompts

every_case = pytest.mark.parametrize(  # a process compiles a case once
    "case", [pytest.param(case, marks=pytest.mark.xdist_group(case)) for case in CASES]
)


def error(logits: np.ndarray, prompt: Prompt, at: int) -> float:
    return float(np.abs(logits - prompt.logits[at]).max())


@every_case
def test_prefill(case: str) -> None:
    """Of prefixes, each padded to the length of a chunk: what pads cannot be seen."""
    for prompt in load_prompts(case):
        length = len(prompt.ids)
        for end in {*range(1, length, 1 + length // 20), length}:
            logits, _ = prefill(load_graphs(case), prompt.ids[:end])
            assert error(logits, prompt, end - 1) < TOLERANCE, f"{end} of {length}"


@every_case
def test_step_by_step_decode(case: str) -> None:
    """From an empty state: prefill and decode compute the same model. Long prompts begin alike: the longest will do."""
    compiled_graphs = load_graphs(case)
    for prompt in [prompt for prompt in load_prompts(case)[:-1] if len(prompt.ids) < 64] + [load_prompts(case)[-1]]:
        state = compiled_graphs.empty()
        for position, token in enumerate(prompt.ids):
            logits, state = decode(compiled_graphs, token, position, state)
            assert error(logits, prompt, position) < TOLERANCE


@every_case
def test_greedy_without_recompilation(case: str) -> None:
    compiled_graphs, prompts = load_graphs(case), load_prompts(case)
    assert greedy(compiled_graphs, prompts[0]) == prompts[0].greedy
    for length in compiled_graphs.lengths:  # every length of a chunk that there is
        prefill(compiled_graphs, [1] * length)
    before = compilations()
    assert before >= 2
    for prompt in prompts:
        assert greedy(compiled_graphs, prompt) == prompt.greedy
    assert compilations() == before


@every_case
def test_chunks_of_64(case: str) -> None:
    """Longer prompts take several, which meet the rings of those before."""
    chunked = replace(load_graphs(case), lengths=(64,))
    for prompt in load_prompts(case):
        logits, _ = prefill(chunked, prompt.ids)
        assert error(logits, prompt, -1) < TOLERANCE


@pytest.mark.xdist_group("hybrid")
@pytest.mark.parametrize("length", [1, 3, 7, 8, 9])
def test_chunks_around_the_window(length: int) -> None:
    """Shorter than the window of 8, as long, longer; the last one padded."""
    chunked = replace(load_graphs("hybrid"), lengths=(length,))
    prompt = load_prompts("hybrid")[-1]
    logits, state = prefill(chunked, prompt.ids)
    assert error(logits, prompt, -1) < TOLERANCE
    logits, _ = decode(chunked, prompt.greedy[0], len(prompt.ids), state)
    assert logits.argmax() == prompt.greedy[1]


@pytest.mark.xdist_group("page-equal")
@pytest.mark.parametrize("capacity", [33 + 24 - 1, 57, 48, 40])
def test_capacity_at_its_end_and_below_the_window(capacity: int) -> None:
    """A window of 48: a ring as long, a capacity below it, and one that the sequence fills to the last slot."""
    full = graphs(load_core("page-equal", capacity), "float32")
    prompt = load_prompts("page-equal")[1]
    steps = min(24, capacity - len(prompt.ids) + 1)
    assert greedy(full, prompt._replace(greedy=prompt.greedy[:steps])) == prompt.greedy[:steps]


@pytest.mark.xdist_group("page-equal")
def test_the_host_refuses_what_has_no_slot() -> None:
    full = graphs(load_core("page-equal", 40), "float32")
    with pytest.raises(InputError, match=r"1 to 40"):
        prefill(full, [3] * 41)
    with pytest.raises(InputError, match=r"1 to 40"):
        prefill(full, [])
    with pytest.raises(InputError, match=r"position 40: these graphs have 40 slots"):
        decode(full, 1, 40, full.empty())


@pytest.mark.xdist_group("hybrid")
def test_ragged_batch() -> None:
    """Rows of 1 to 40 tokens in one decode graph, each at its own position."""
    core, prompts = load_core("hybrid"), load_prompts("hybrid")
    together = compiled(Decode(core))
    states, tokens = [], []
    for prompt in prompts:
        logits, state = prefill(load_graphs("hybrid"), prompt.ids)
        states.append(state)
        tokens.append(int(logits.argmax()))
    state = [mint.cat(parts, 0) for parts in zip(*states, strict=True)]
    made = [tokens]
    for step in range(len(prompts[0].greedy) - 1):
        pos = Tensor([len(prompt.ids) + step for prompt in prompts], int32)
        logits, *state = together(Tensor(np.array(made[-1])[:, None], int32), pos, *state)
        made.append(logits.asnumpy().argmax(1).tolist())
    assert np.array(made).T.tolist() == [prompt.greedy for prompt in prompts]


@pytest.mark.xdist_group("hybrid")
def test_the_id_vocab_size_counts_as_0() -> None:
    vocab = load_core("hybrid").vocab
    first, _ = prefill(load_graphs("hybrid"), [5, vocab, 7])
    second, _ = prefill(load_graphs("hybrid"), [5, 0, 7])
    assert np.array_equal(first, second)
