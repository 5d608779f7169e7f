"""The golden prompts as jobs for an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..model.golden import CASES, ROOT, load_prompts
from .engine import Job, workers
from .forks import run

__all__ = ["CASES", "SHARED", "ask", "continuations", "golden_job"]

SHARED = ["page-equal", "page-ratio"]  # their prompts share 150 tokens
# The two cores of a small machine, one for each worker; vLLM wants to be told.
TWO_WORKERS = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}


def golden_job(case: str, rounds: tuple[str, ...] = ("together",), **engine: Any) -> Job:
    """All prompts of a case."""
    environment = dict(TWO_WORKERS if workers(engine) > 1 else {})
    prompts = [ids.tolist() for ids, _, _ in load_prompts(case)]
    return Job(str(ROOT / case), prompts, rounds, engine, environment=environment)


def continuations(case: str) -> list[list[int]]:
    """The expected greedy tokens of each prompt."""
    return [greedy.tolist() for _, _, greedy in load_prompts(case)]


def ask(job: Job, case: str, folder: Path) -> dict[str, Any]:
    """The engine's answer, all of whose tokens are the golden ones."""
    answer = run(job, folder)
    for how, answers in zip(job.rounds, answer["rounds"], strict=True):
        assert [sample["tokens"] for sample in answers] == continuations(case), how
    return answer
