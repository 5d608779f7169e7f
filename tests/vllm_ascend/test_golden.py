"""The golden prompts through vllm-ascend, its attention and its caches on the host NPU, in float16."""

from __future__ import annotations

from pathlib import Path

import pytest

from .engine import CASES, answer, ascend_job, ask

# vllm-ascend 0.23 is written for torch 2.10. In 2.13 a cache refuses what its compiler returns, and torch looks whether
# operators return their inputs, as one of vLLM's does: a warning, but an error where CI is set in the environment.
GRAPHS = {"TORCHINDUCTOR_AUTOGRAD_CACHE": "0", "TORCHINDUCTOR_ERROR_ON_CUSTOM_OP_ALIASING": "0"}


@pytest.mark.parametrize("case", CASES)  # windows of 4 to 48, prompts shorter and longer
def test_together_and_one_by_one(case: str, tmp_path: Path) -> None:
    ask(ascend_job(case, ("together", "one by one")), case, tmp_path)


@pytest.mark.parametrize("case", ["page-equal", "page-ratio"])
def test_prefixes_are_found_again(case: str, tmp_path: Path) -> None:
    job = ascend_job(case, ("one by one", "together"), enable_prefix_caching=True)
    first, again = ask(job, case, tmp_path)["rounds"]
    assert sum(sample["cached"] for sample in first) > 0
    assert sum(sample["cached"] for sample in again) > sum(sample["cached"] for sample in first)


@pytest.mark.parametrize("caching", [False, True])
def test_chunks(caching: bool, tmp_path: Path) -> None:
    job = ascend_job("page-ratio", ("together",), max_num_batched_tokens=128, enable_prefix_caching=caching)
    ask(job, "page-ratio", tmp_path)


@pytest.mark.parametrize("case", ["page-ratio", "hybrid"])  # hybrid: one global KV head, on both ranks
def test_tensor_parallel_over_hccl(case: str, tmp_path: Path) -> None:
    ask(ascend_job(case, ("together", "one by one"), tensor_parallel_size=2), case, tmp_path)


@pytest.mark.parametrize("case", ["page-ratio", "hybrid"])
def test_captured_graphs(case: str, tmp_path: Path) -> None:
    """Piecewise for prompts and whole for decode steps, as vllm-ascend does unless told otherwise."""
    job = ascend_job(case, ("together", "one by one"), enforce_eager=False, enable_prefix_caching=True)
    job.environment.update(GRAPHS)
    ask(job, case, tmp_path)


def test_preempted_requests_go_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    job = ascend_job("page-ratio", ("one by one", "together"), num_gpu_blocks_override=26, max_model_len=256)
    job.prompts[:] = [prompt[:120] for prompt in job.prompts[-4:]]  # outgrow their first block of 128 tokens together
    answered = answer(job, tmp_path)
    alone, together = ([sample["tokens"] for sample in answers] for answers in answered["rounds"])
    assert answered["preemptions"] > 0
    assert together == alone
