"""Jobs for vllm-ascend on the host NPU, and the project's own model in float16 on the CPU to compare with."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ascend_m1 import BaichuanM1ForCausalLM

from ..model.golden import CASES, ROOT, load_prompts
from ..vllm.engine import Job, run

__all__ = ["CASES", "Job", "ascend_job", "ask"]

PROGRAM = str(Path(__file__).with_name("program.py"))
# 1.5: the vendor's fused operators round at other places than the CPU's, not more often (tests/npu/golden.py).
WORST = 1.5


def ascend_job(case: str, rounds: tuple[str, ...] = ("together",), **engine: Any) -> Job:
    """All prompts of a golden case, in float16."""
    prompts = [ids.tolist() for ids, _, _ in load_prompts(case)]
    engine = {"dtype": "float16", "gpu_memory_utilization": 0.3, **engine}
    return Job(str(ROOT / case), prompts, rounds, engine)


def answer(job: Job, folder: Path) -> dict[str, Any]:
    """What vllm-ascend answers on as many host NPUs as the job wants."""
    devices = job.engine.get("tensor_parallel_size", 1)
    return run(job, folder, "-m", "ascend_m1_hostnpu", "--devices", str(devices), PROGRAM, timeout=900)


def ask(job: Job, case: str, folder: Path) -> dict[str, Any]:
    """The answer, all of whose tokens are those of the project's own model in float16 on the CPU.

    Where they differ first, both choices must be so near in float32 that rounding can exchange them; that is printed.
    """
    answered = answer(job, folder)
    for how, answers in zip(job.rounds, answered["rounds"], strict=True):
        for index, sample in enumerate(answers):
            _compare(case, index, sample["tokens"], how)
    return answered


@lru_cache
def _model(case: str, dtype: torch.dtype) -> BaichuanM1ForCausalLM:
    return BaichuanM1ForCausalLM.from_pretrained(ROOT / case, dtype=dtype).eval()


@lru_cache
@torch.no_grad()
def own_tokens(case: str, index: int) -> list[int]:
    """24 greedy tokens after one prompt."""
    ids, _, greedy = load_prompts(case)[index]
    out = _model(case, torch.float16).generate(
        ids[None], max_new_tokens=len(greedy), do_sample=False, eos_token_id=None, pad_token_id=0
    )
    tokens: list[int] = out[0, len(ids) :].tolist()
    return tokens


@torch.no_grad()
def _along(case: str, ids: Tensor, tokens: list[int], dtype: torch.dtype) -> Tensor:
    """Logits [steps, vocab] from which each of the tokens was chosen."""
    text = torch.cat([ids, torch.tensor(tokens)])
    logits: Tensor = _model(case, dtype)(text[None]).logits[0, len(ids) - 1 : -1].float()
    return logits


def _compare(case: str, index: int, got: list[int], how: str) -> None:
    ids, expected = load_prompts(case)[index][0], own_tokens(case, index)
    step = next((i for i, (a, b) in enumerate(zip(got, expected, strict=True)) if a != b), None)
    if step is None:
        return
    exact, rounded = (_along(case, ids, expected, dtype) for dtype in (torch.float32, torch.float16))
    gap = (exact[step, got[step]] - exact[step, expected[step]]).abs().item()
    allowed = 2 * WORST * (rounded - exact).abs().max().item()
    print(f"{case}, {how}, prompt of {len(ids)}, step {step}: {got[step]} instead of {expected[step]}, {gap:.4g} apart")
    assert gap <= allowed, f"{gap:.4g} apart, {allowed:.4g} can be rounding"
