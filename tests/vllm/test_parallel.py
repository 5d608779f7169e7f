"""The golden continuations out of two workers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from .engine import Job
from .engine import run as run_alone
from .forks import run
from .golden import CASES, SHARED, TWO_WORKERS, ask, continuations, golden_job

# The CPU runner makes the tensors that a stage receives only if it compiles, with whatever backend.
TRACED = {"enforce_eager": False, "compilation_config": {"mode": 2, "backend": "eager"}}


@pytest.mark.parametrize("case", CASES)  # all have one global KV head, on both ranks
def test_tensor_parallel(case: str, tmp_path: Path) -> None:
    job = golden_job(case, ("together", "one by one"), tensor_parallel_size=2, enable_prefix_caching=case in SHARED)
    ask(job, case, tmp_path)


@pytest.mark.parametrize("case", CASES)
def test_pipeline_parallel(case: str, tmp_path: Path) -> None:
    ask(golden_job(case, ("together", "one by one"), pipeline_parallel_size=2, **TRACED), case, tmp_path)


def test_workers_as_vllm_starts_them(tmp_path: Path) -> None:
    """They are new processes, to which the configuration is sent."""
    job = golden_job("hybrid", tensor_parallel_size=2)
    job.environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine is not; the server's is (test_server.py)
    answers = run_alone(job, tmp_path)["rounds"][0]
    assert [sample["tokens"] for sample in answers] == continuations("hybrid")


@pytest.mark.parametrize("ours", [True, False])
def test_eager_stages_fail_in_vllm_for_any_model(ours: bool, tmp_path: Path) -> None:
    """A limit of vLLM's CPU runner: a Llama of vLLM's own fails alike."""
    job = golden_job("hybrid", pipeline_parallel_size=2)
    if not ours:
        job = Job(str(make_llama(tmp_path / "llama")), [[1, 2, 3]], engine={"pipeline_parallel_size": 2})
        job.environment.update(TWO_WORKERS)
    with pytest.raises(AssertionError, match=r"assert self\.intermediate_tensors is not None"):
        run(job, tmp_path)


def make_llama(folder: Path) -> Path:
    """A small Llama with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
