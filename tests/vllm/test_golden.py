"""The golden continuations out of vLLM, in float32, however it is driven."""

from __future__ import annotations

from pathlib import Path

import pytest

from .golden import CASES, SHARED, ask, continuations, golden_job, run

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
    for miss, hit in zip(first, again, strict=True):  # float32: other sums of at most 230 keys
        assert hit["logprobs"] == pytest.approx(miss["logprobs"], abs=2e-5)


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


@pytest.mark.parametrize("case", ["page-ratio", "hybrid"])  # hybrid: one global KV head, on both ranks
def test_tensor_parallel(case: str, tmp_path: Path) -> None:
    ask(golden_job(case, ("together", "one by one"), tensor_parallel_size=2), case, tmp_path)


def test_pipeline_parallel(tmp_path: Path) -> None:
    ask(golden_job("hybrid", pipeline_parallel_size=2, enforce_eager=False), "hybrid", tmp_path)


def test_compiled(tmp_path: Path) -> None:
    ask(golden_job("hybrid", ("together", "one by one"), enforce_eager=False), "hybrid", tmp_path)


def test_asynchronous_scheduling(tmp_path: Path) -> None:
    ask(golden_job("hybrid", async_scheduling=True), "hybrid", tmp_path)
