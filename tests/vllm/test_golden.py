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


@pytest.mark.parametrize("caching", [False, True])
def test_preempted_requests_go_on_as_if_nothing_had_been(caching: bool, tmp_path: Path) -> None:
    case = "page-ratio"
    few = {"num_gpu_blocks_override": 56, "block_size": 32, "max_model_len": 352}
    job = golden_job(case, ("one by one", "together"), enable_prefix_caching=caching, **few)
    job.sampling["max_tokens"] = 100  # so that requests outgrow the room they were let in with
    answer = run(job, tmp_path)
    alone, together = ([sample["tokens"] for sample in answers] for answers in answer["rounds"])
    assert answer["preemptions"] > 0
    assert together == alone
    assert [tokens[:24] for tokens in together] == continuations(case)


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
