"""The golden continuations out of vLLM, in float32, however it is driven."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ..model.golden import TOLERANCE, load_model
from .forks import run
from .golden import CASES, SHARED, ask, continuations, golden_job

CHUNKS = {"max_num_batched_tokens": 8}


@pytest.mark.parametrize("case", CASES)
def test_together_and_one_by_one(case: str, tmp_path: Path) -> None:
    ask(golden_job(case, ("together", "one by one")), case, tmp_path)


@pytest.mark.parametrize("case", CASES)
def test_chunks_of_eight(case: str, tmp_path: Path) -> None:
    ask(golden_job(case, ("together", "one by one"), **CHUNKS), case, tmp_path)


@pytest.mark.parametrize("case", SHARED)
def test_a_prefix_hit_equals_a_miss(case: str, tmp_path: Path) -> None:
    job = golden_job(case, ("one by one", "together"), enable_prefix_caching=True)
    job.sampling["logprobs"] = 1
    first, again = ask(job, case, tmp_path)["rounds"]
    assert sum(sample["cached"] for sample in first) > 0  # the shared beginning
    assert sum(sample["cached"] for sample in again) > sum(sample["cached"] for sample in first)
    for miss, hit in zip(first, again, strict=True):
        assert hit["logprobs"] == pytest.approx(miss["logprobs"], abs=TOLERANCE)


@pytest.mark.parametrize("case", [case for case in CASES if case not in SHARED])
def test_answers_are_found_again(case: str, tmp_path: Path) -> None:
    """Prompts shorter than a block of 128 tokens go on with the model's own answer, whose beginning is golden."""
    wanted = [own_answer(case, prompt, 150) for prompt in golden_job(case).prompts]
    assert [tokens[:24] for tokens in wanted] == continuations(case)
    job = golden_job(case, ("one by one", "together"), enable_prefix_caching=True)
    job.prompts[:] = [prompt + tokens[:130] for prompt, tokens in zip(job.prompts, wanted, strict=True)]
    job.sampling["max_tokens"] = 20
    first, again = run(job, tmp_path)["rounds"]
    for answers in (first, again):
        assert [sample["tokens"] for sample in answers] == [tokens[130:] for tokens in wanted]
    assert sum(sample["cached"] for sample in again) >= 128 * len(job.prompts)


@torch.no_grad()
def own_answer(case: str, prompt: list[int], count: int) -> list[int]:
    """Greedy tokens of the project's own model."""
    out = load_model(case).generate(
        torch.tensor([prompt]), max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    tokens: list[int] = out[0, len(prompt) :].tolist()
    return tokens


# Blocks of 32 tokens, too few for the requests that are let in: they outgrow the room of their prompts.
FEW = {"global-only": 10, "hybrid": 24, "page-equal": 24, "page-ratio": 24, "published-ratio": 24, "window-only": 10}


@pytest.mark.parametrize(("case", "caching"), [*((case, False) for case in CASES), ("page-ratio", True)])
def test_preempted_requests_go_on_as_if_nothing_had_been(case: str, caching: bool, tmp_path: Path) -> None:
    length = 352 if case in SHARED else 160
    few = {"num_gpu_blocks_override": 56 if caching else FEW[case], "block_size": 32, "max_model_len": length}
    job = golden_job(case, ("one by one", "together"), enable_prefix_caching=caching, **few)
    count = len(job.prompts)
    job.prompts.extend(job.prompts[-1:] * (6 - count))
    job.sampling["max_tokens"] = 100
    answer = run(job, tmp_path)
    alone, together = ([sample["tokens"] for sample in answers] for answers in answer["rounds"])
    assert answer["preemptions"] > 0
    assert together == alone
    assert [tokens[:24] for tokens in together[:count]] == continuations(case)


def test_compiled(tmp_path: Path) -> None:
    ask(golden_job("hybrid", ("together", "one by one"), enforce_eager=False), "hybrid", tmp_path)


@pytest.mark.parametrize("caching", [False, True])
def test_asynchronous_scheduling(caching: bool, tmp_path: Path) -> None:
    job = golden_job("page-ratio", ("one by one", "together"), async_scheduling=True, enable_prefix_caching=caching)
    assert ask(job, "page-ratio", tmp_path)["scheduler"] == "AsyncScheduler"


@torch.no_grad()
def test_samples_of_one_prompt(tmp_path: Path) -> None:
    """Each goes its own way, and on it has the logprobs that the model gives without vLLM."""
    job = golden_job("page-ratio", enable_prefix_caching=True)
    job.sampling.update(n=3, temperature=1.0, logprobs=1)
    for prompt, sample in zip(job.prompts, run(job, tmp_path)["rounds"][0], strict=True):
        ways = sample["samples"]
        assert len({tuple(way["tokens"]) for way in ways}) == 3
        for way in ways:
            tokens = torch.tensor(way["tokens"])
            text = torch.cat([torch.tensor(prompt), tokens])
            logits = load_model("page-ratio")(text[None]).logits[0, len(prompt) - 1 : -1]
            expected = logits.log_softmax(-1).gather(1, tokens[:, None]).flatten()
            assert way["logprobs"] == pytest.approx(expected.tolist(), abs=TOLERANCE)
